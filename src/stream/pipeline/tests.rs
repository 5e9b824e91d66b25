//! Whole runs of the pipeline over files, into pipes.

use super::make::slots_ahead;
use super::*;
use crate::crc;
use crate::device::Access;
use crate::fs::UsedMap;
use crate::stream::gzip;
use crate::stream::output::{GzipEmitter, Output, RawEmitter, Totals, TotalsCell};
use crate::stream::plan::{Part, PartContent, SPAN_BYTES};
use crate::units::{BlockSize, Extent};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

#[derive(Default)]
struct Count(AtomicU64, AtomicU64);
impl Meter for Count {
    fn read(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn taken(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// A source with noise, text and zeros, a map over it, and what the image must be.
fn source(seed: &mut u64, blocks: u64) -> (std::path::PathBuf, UsedMap, Vec<u8>) {
    let block = 1024u64;
    let mut data = vec![0u8; to_usize(blocks * block + 300)];
    for piece in data.chunks_mut(4096 * 3) {
        match random(seed) % 4 {
            0 => piece
                .iter_mut()
                .for_each(|byte| *byte = random(seed).to_le_bytes()[0]),
            1 => piece
                .iter_mut()
                .zip(b"text text text ".iter().cycle())
                .for_each(|(a, b)| *a = *b),
            _ => {}
        }
    }
    let size = to_u64(data.len());
    let mut map = UsedMap::new(size, BlockSize::from_bytes(block).unwrap()).unwrap();
    for _ in 0..12 {
        let start = random(seed) % blocks;
        let length_bytes = random(seed) % 900 * block;
        map.set_free(Extent::at(start * block, length_bytes));
    }
    let mut expected = vec![0; data.len()];
    let mut from = 0;
    while let Some(run) = map.next_used(from, u64::MAX) {
        let range = to_usize(run.offset)..to_usize(run.end());
        expected[range.clone()].copy_from_slice(&data[range]);
        from = run.end();
    }
    let path = std::env::temp_dir().join(format!("floe-pipe-{}-{seed:x}", std::process::id()));
    std::fs::write(&path, &data).unwrap();
    (path, map, expected)
}

fn run(path: &std::path::Path, map: UsedMap, settings: Settings, slow: bool) -> (Vec<u8>, Totals) {
    let device = Device::open(path, Access::Read).unwrap();
    let plan = Plan::new(vec![vec![Part {
        device: 0,
        device_offset: 0,
        length_bytes: crate::device::ReadAt::size_bytes(&device),
        content: PartContent::Used(map),
    }]]);
    let meter: &'static Count = Box::leak(Box::default());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let totals: TotalsCell = Arc::default();
    let output = Output::new(OwnedFd::from(writer), meter, true);
    let emit: Box<dyn Emit> = match settings.encoding {
        Encoding::Raw => Box::new(RawEmitter::new(output, false, Arc::clone(&totals))),
        Encoding::Deflate(_) => {
            Box::new(GzipEmitter::new(output, &gzip::HEADER, Arc::clone(&totals)).unwrap())
        }
    };
    let pipeline = Pipeline::new(settings, vec![device], Outlet::Stream(emit), meter).unwrap();
    pipeline.start(plan);
    let sink = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut buffer = vec![0; 5000];
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..count]);
            if slow && all.len() % 7 == 0 {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
    });
    let mut permitted = false;
    while let state = pipeline.state()
        && !state.finished
    {
        assert!(state.problem.is_none(), "{:?}", state.problem);
        if state.drained && !permitted {
            assert!(state.all_read);
            pipeline.permit();
            permitted = true;
        }
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            pipeline.event(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
    }
    let result = *totals.lock();
    assert_eq!(meter.1.load(Ordering::Relaxed), result.written_bytes);
    // The emitter thread drops the write end when it is done, which ends the sink.
    (sink.join().unwrap(), result)
}

fn settings(jobs: usize, encoding: Encoding, spool_bytes: u64) -> Settings {
    Settings {
        jobs,
        encoding,
        spool_bytes,
        precopy: None,
        spool_file: None,
        hashes: None,
    }
}

#[test]
fn any_number_of_jobs_and_any_spool_give_the_image_with_zeros_where_the_map_is_free() {
    let mut seed = 3;
    for (jobs, spool_bytes, blocks, slow) in [
        (1, 0, 3000, false),
        (2, 0, 9000, true),
        (3, 64 << 20, 6000, false),
        (4, 1 << 20, 40, true),
    ] {
        let (path, map, expected) = source(&mut seed, blocks);
        let (stream, totals) = run(
            &path,
            map,
            settings(jobs, Encoding::Deflate(1), spool_bytes),
            slow,
        );
        std::fs::remove_file(&path).unwrap();
        let body = &stream[10..stream.len() - 8];
        let image = miniz_oxide::inflate::decompress_to_vec(body).unwrap();
        assert!(image == expected);
        assert_eq!(totals.crc32, crc::crc32(0, &expected));
        assert_eq!(
            &stream[stream.len() - 8..],
            crate::stream::gzip::trailer(totals.crc32, to_u64(expected.len()))
        );
    }
}

#[test]
fn slots_ahead_take_a_quarter_of_the_spool_and_none_where_it_is_off() {
    struct Nowhere;
    impl Placing for Nowhere {
        fn begin(&self) -> Result<(), Fault> {
            Ok(())
        }
        fn place(&self, _: usize, _: u64, _: &[u8]) -> Result<(), Fault> {
            Ok(())
        }
        fn shares_medium(&self) -> bool {
            false
        }
        fn failed(&self) -> &str {
            ""
        }
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let meter: &'static Count = Box::leak(Box::default());
    let output = Output::new(OwnedFd::from(writer), meter, false);
    let stream = Outlet::Stream(Box::new(RawEmitter::new(output, false, Arc::default())));
    let places = Outlet::Places(&Nowhere);
    for (spool_bytes, slots) in [
        (0, 0),
        (2 * SPAN_BYTES, 0),
        (4 * SPAN_BYTES, 1),
        (64 << 20, 32),
        (1 << 40, 4096),
    ] {
        assert_eq!(slots_ahead(spool_bytes, &stream), slots);
        let all = spool_bytes / SPAN_BYTES;
        assert_eq!(to_u64(slots_ahead(spool_bytes, &places)), all.min(4096));
        assert!(to_u64(slots) * SPAN_BYTES <= spool_bytes / 4);
    }
}

#[test]
fn the_raw_encoding_gives_the_same_image() {
    let mut seed = 77;
    let (path, map, expected) = source(&mut seed, 5000);
    let (stream, totals) = run(&path, map, settings(2, Encoding::Raw, 0), true);
    std::fs::remove_file(&path).unwrap();
    assert!(stream == expected);
    assert_eq!(totals.crc32, crc::crc32(0, &expected));
}

#[test]
fn a_source_that_ends_early_is_a_problem_with_its_offset_and_no_end_of_stream() {
    let path = std::env::temp_dir().join(format!("floe-short-{}", std::process::id()));
    std::fs::write(&path, vec![5; 600_000]).unwrap();
    let device = Device::open(&path, Access::Read).unwrap();
    std::fs::remove_file(&path).unwrap();
    let plan = Plan::new(vec![vec![Part {
        device: 0,
        device_offset: 0,
        length_bytes: 900_000,
        content: PartContent::Whole,
    }]]);
    let meter: &'static Count = Box::leak(Box::default());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let output = Output::new(OwnedFd::from(writer), meter, true);
    let emit = Box::new(GzipEmitter::new(output, &gzip::HEADER, Arc::default()).unwrap());
    let pipeline = Pipeline::new(
        settings(2, Encoding::Deflate(1), 0),
        vec![device],
        Outlet::Stream(emit),
        meter,
    )
    .unwrap();
    pipeline.start(plan);
    let mut stream = Vec::new();
    reader.read_to_end(&mut stream).unwrap();
    let Some(Problem::Read(0, fault)) = pipeline.state().problem else {
        panic!("no read problem");
    };
    assert_eq!(fault.offset(), Some(SPAN_BYTES));
    assert!(miniz_oxide::inflate::decompress_to_vec(&stream[10..]).is_err());
}

#[test]
fn a_closed_pipe_is_told_apart() {
    let path = std::env::temp_dir().join(format!("floe-closed-{}", std::process::id()));
    std::fs::write(&path, vec![5; 300_000]).unwrap();
    let device = Device::open(&path, Access::Read).unwrap();
    std::fs::remove_file(&path).unwrap();
    let meter: &'static Count = Box::leak(Box::default());
    let (reader, writer) = std::io::pipe().unwrap();
    let output = Output::new(OwnedFd::from(writer), meter, false);
    let emit = Box::new(RawEmitter::new(output, false, Arc::default()));
    let pipeline = Pipeline::new(
        settings(1, Encoding::Raw, 0),
        vec![device],
        Outlet::Stream(emit),
        meter,
    )
    .unwrap();
    drop(reader);
    pipeline.start(Plan::new(vec![vec![Part {
        device: 0,
        device_offset: 0,
        length_bytes: 300_000,
        content: PartContent::Whole,
    }]]));
    for _ in 0..1000 {
        if let Some(problem) = pipeline.state().problem {
            assert!(matches!(problem, Problem::ClosedPipe));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("no problem within 5 s");
}

/// A copy into memory; slow now and then, and failing where it is told to.
struct Memory {
    begun: AtomicU64,
    bytes: Lock<Vec<u8>>,
    fails_at: Option<u64>,
    shares_medium: bool,
}

impl Placing for Memory {
    fn begin(&self) -> Result<(), Fault> {
        std::thread::sleep(Duration::from_millis(5));
        self.begun.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn place(&self, part: usize, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        assert_eq!((part, self.begun.load(Ordering::SeqCst)), (0, 1));
        if self.fails_at.is_some_and(|at| at <= offset) {
            return Err(Fault::short("no room").at(offset, to_u64(bytes.len())));
        }
        let start = to_usize(offset);
        self.bytes.lock()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn shares_medium(&self) -> bool {
        self.shares_medium
    }

    fn failed(&self) -> &str {
        "memory"
    }
}

fn copy(
    map: UsedMap,
    path: &std::path::Path,
    memory: &'static Memory,
    (jobs, spool_bytes): (usize, u64),
) -> Advance {
    let device = Device::open(path, Access::Read).unwrap();
    let plan = Plan::new(vec![vec![Part {
        device: 0,
        device_offset: 0,
        length_bytes: crate::device::ReadAt::size_bytes(&device),
        content: PartContent::Used(map),
    }]]);
    let meter: &'static Count = Box::leak(Box::default());
    let settings = settings(jobs, Encoding::Raw, spool_bytes);
    let outlet = Outlet::Places(memory);
    let pipeline = Pipeline::new(settings, vec![device], outlet, meter).unwrap();
    assert!(!pipeline.state().all_read);
    pipeline.start(plan);
    for _ in 0..4000 {
        let state = pipeline.state();
        if state.finished || state.problem.is_some() {
            return state;
        }
        if state.drained {
            assert!(state.all_read);
            pipeline.permit();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("neither finished nor failed within 4 s");
}

#[test]
fn a_copy_places_every_used_block_once_begun_and_ends_only_when_permitted() {
    let mut seed = 11;
    for sizes in [(1, 0), (4, 0), (3, 2 << 20), (3, 64 << 20)] {
        let (path, map, expected) = source(&mut seed, 7000);
        let memory: &'static Memory = Box::leak(Box::new(Memory {
            begun: AtomicU64::new(0),
            bytes: Lock::new(vec![0; expected.len()]),
            fails_at: None,
            shares_medium: sizes.1 > 0,
        }));
        let state = copy(map, &path, memory, sizes);
        std::fs::remove_file(&path).unwrap();
        assert!(state.finished && state.problem.is_none(), "{state:?}");
        assert!(*memory.bytes.lock() == expected);
    }
}

#[test]
fn a_target_that_fails_stops_a_copy_with_its_place() {
    let mut seed = 12;
    let (path, map, expected) = source(&mut seed, 9000);
    let memory: &'static Memory = Box::leak(Box::new(Memory {
        begun: AtomicU64::new(0),
        bytes: Lock::new(vec![0; expected.len()]),
        fails_at: Some(3 << 20),
        shares_medium: true,
    }));
    let state = copy(map, &path, memory, (2, 0));
    std::fs::remove_file(&path).unwrap();
    let Some(Problem::Write(fault)) = state.problem else {
        panic!("{state:?}");
    };
    assert!(fault.offset().is_some_and(|at| at >= 3 << 20));
}

#[test]
fn all_slots_ahead_are_parts_of_one_mapping() {
    let meter: &'static Count = Box::leak(Box::default());
    let (_reader, writer) = std::io::pipe().unwrap();
    let output = Output::new(OwnedFd::from(writer), meter, true);
    let emit = Box::new(RawEmitter::new(output, false, Arc::default()));
    let wanted = settings(2, Encoding::Raw, 256 << 20);
    let pipeline = Pipeline::new(wanted, Vec::new(), Outlet::Stream(emit), meter).unwrap();
    let slots = &pipeline.shared.slots;
    assert_eq!(slots.len(), 3 + 128);
    let place = |slot: &RwLock<&'static mut [u8]>| {
        let slot = slot.read().unwrap();
        assert_eq!(
            (to_u64(slot.len()), slot.as_ptr().align_offset(4096)),
            (SPAN_BYTES, 0)
        );
        slot.as_ptr().addr()
    };
    assert!(
        slots
            .windows(2)
            .all(|pair| place(&pair[0]) + to_usize(SPAN_BYTES) == place(&pair[1]))
    );
    pipeline.shared.fail(Problem::ClosedPipe);
}
