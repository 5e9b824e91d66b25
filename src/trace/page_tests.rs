//! Layouts as kernels print them, and records as they were taken from the ring of one.

use super::*;

/// x86_64, 6.18.
const HEADER_64: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
";

/// armv7, 6.1: a word of four bytes moves everything.
const HEADER_32: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:4;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:12;\tsize:4084;\tsigned:0;
";

const COMMON: &str = "format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;
\tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;
";

fn format(id: u16, rest: &str) -> String {
    format!("name: x\nID: {id}\n{COMMON}{rest}\nprint fmt: \"%d,%d %s\", REC->rwbs")
}

/// 6.18.
fn queued() -> EventFormat {
    let rest = "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:char rwbs[10];\toffset:28;\tsize:10;\tsigned:0;
\tfield:char comm[16];\toffset:38;\tsize:16;\tsigned:0;
";
    EventFormat::parse(&format(2097, rest)).unwrap()
}

/// 6.18.
fn completed() -> EventFormat {
    let rest = "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:int error;\toffset:28;\tsize:4;\tsigned:1;
\tfield:unsigned short ioprio;\toffset:32;\tsize:2;\tsigned:0;
\tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;
\tfield:__data_loc char[] cmd;\toffset:44;\tsize:4;\tsigned:0;
";
    EventFormat::parse(&format(2107, rest)).unwrap()
}

/// Seven records of 6.18, one of each kind.
const RECORDS: &str = "\
    0e00000031080000831000000700700000000000000000000000000000000000465753004055290b00ea6d6b66732e657874340000000000\
    0000ffffae8e583e31080000b810000003007000000000005c4b00000000000026000000570000000440520000ea6d760000000000000000\
    000000000000ffffed350c003b0810000e000000030070000000000036510000000000000c000000000000000440570000ea6b776f726b65\
    3000010000000000ceb01c0031080000831000000700700000000000000800000000000002000000445300000440520000ea6d6b66732e65\
    78743400000000000000ffff2d218b013b0810000e00000007007000000000005009000000000000060000000000000004404e5300ea6b77\
    6f726b6530000100000000002dc740163b0810000e0000000700700000000000ffffffffffffffff00000000000000000000464600ea666f\
    726d617430000100000000006e461a0031080000141200000700700000000000564900000000000002000000465746534d00575300006a62\
    64322f6c6f6f703770312d3800000000\
    ";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// A page of 4096 bytes with these records, as it is read.
fn page(records: &[u8]) -> Vec<u8> {
    let mut page = vec![0; 8];
    page.extend((records.len() as u64).to_le_bytes());
    page.extend(records);
    page.resize(4096, 0);
    page
}

fn header() -> PageHeader {
    PageHeader::parse(HEADER_64).unwrap()
}

#[test]
fn the_records_of_a_real_kernel_are_understood() {
    let (queued, completed) = (queued(), completed());
    let mut found = Vec::new();
    let count = header().records(&page(&bytes(RECORDS)), |record| {
        let format = if queued.is_of(record) {
            queued
        } else {
            completed
        };
        assert!(format.is_of(record));
        found.push(format.event(record).unwrap());
    });
    assert_eq!(count, Ok(7));
    let expected = [
        (0x70_0007, 0, 0, Action::Nothing),
        (0x70_0003, 19292, 38, Action::Write),
        (0x70_0003, 20790, 12, Action::Write),
        (0x70_0007, 2048, 2, Action::Discard),
        (0x70_0007, 2384, 6, Action::Other),
        (0x70_0007, u64::MAX, 0, Action::Nothing),
        (0x70_0007, 18774, 2, Action::Other),
    ];
    let expected = expected.map(|(dev, sector, sectors, action)| Event {
        dev,
        sector,
        sectors,
        action,
    });
    assert_eq!(found, expected);
}

#[test]
fn fields_lie_where_the_kernel_says() {
    let header = PageHeader::parse(HEADER_32).unwrap();
    assert_eq!(
        (header.page_bytes(), header.data, header.commit.size),
        (4096, 12, 4)
    );
    // 6.1: rwbs is eight bytes, and comm follows.
    let rest = "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:char rwbs[8];\toffset:28;\tsize:8;\tsigned:0;
\tfield:char comm[16];\toffset:36;\tsize:16;\tsigned:0;
";
    let found = EventFormat::parse(&format(1234, rest)).unwrap();
    let mut record = vec![0; 52];
    record[..2].copy_from_slice(&1234_u16.to_le_bytes());
    record[8..12].copy_from_slice(&(8_u32 << 20 | 1).to_le_bytes());
    record[16..24].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    record[24..28].copy_from_slice(&8_u32.to_le_bytes());
    // Eight letters leave no room for a zero.
    record[28..36].copy_from_slice(b"WFSMASMA");
    assert!(found.is_of(&record));
    let event = found.event(&record).unwrap();
    let expected = (8 << 20 | 1, 1 << 40, 8, Action::Write);
    assert_eq!(
        (event.dev, event.sector, event.sectors, event.action),
        expected
    );
    assert_eq!(found.event(&record[..35]), None);
    assert_eq!(EventFormat::parse(&format(1234, "")), None);
    let wide = rest.replace("size:4", "size:2");
    assert_eq!(EventFormat::parse(&format(1234, &wide)), None);
    assert_eq!(
        PageHeader::parse("\tfield: char data;\toffset:16;\tsize:4080;"),
        None
    );
}

#[test]
fn a_page_of_a_kernel_of_four_byte_words_is_understood() {
    let queued = "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:char rwbs[8];\toffset:28;\tsize:8;\tsigned:0;
";
    let completed = "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;
\tfield:int error;\toffset:28;\tsize:4;\tsigned:1;
\tfield:char rwbs[8];\toffset:32;\tsize:8;\tsigned:0;
";
    let formats = [format(1009, queued), format(1018, completed)];
    let formats = formats.map(|text| EventFormat::parse(&text).unwrap());
    // The first queueing and the completion of 20 writes that were merged, as armv7's 6.1 recorded them.
    let records = "\
        0e000000f10300006c0000000000e00f00000000000000000000000008000000575300000000000064640000000000000000000000000000\
        000000000d384415fa0310006c0000000000e00f000000000000000000000000a00000000000000057530000000000002c00010000000000\
        00000000\
        ";
    let records = bytes(records);
    let mut page = vec![0; 8];
    page.extend(u32::try_from(records.len()).unwrap().to_le_bytes());
    page.extend(&records);
    page.resize(4096, 0xee); // what follows is not looked at
    let mut found = Vec::new();
    let count = PageHeader::parse(HEADER_32)
        .unwrap()
        .records(&page, |record| {
            let mine = formats.iter().find(|format| format.is_of(record)).unwrap();
            let event = mine.event(record).unwrap();
            found.push((event.dev, event.sector, event.sectors, event.action));
        });
    assert_eq!(count, Ok(2));
    let disk = 254 << 20;
    assert_eq!(
        found,
        [(disk, 0, 8, Action::Write), (disk, 0, 160, Action::Write)]
    );
}

#[test]
fn what_is_not_known_to_change_nothing_counts_as_a_write() {
    let is = |words: &[u8], empty| action(words, empty);
    for words in [&b"R"[..], b"RA", b"RSM", b"R\0W"] {
        assert_eq!(is(words, false), Action::Read);
    }
    for words in [&b"W"[..], b"WS", b"WFSM\0\0"] {
        assert_eq!(
            (is(words, false), is(words, true)),
            (Action::Write, Action::Nothing)
        );
    }
    for words in [&b"D"[..], b"DS", b"DSM\0E"] {
        assert_eq!(
            (is(words, false), is(words, true)),
            (Action::Discard, Action::Discard)
        );
    }
    // Secure erase, as new kernels and old ones say it, zones, and nothing known.
    for words in [&b"DE"[..], b"DES", b"DSE", b"ZR", b"ZA", b"?", b"", b"\0R"] {
        assert_eq!(
            (is(words, false), is(words, true)),
            (Action::Other, Action::Other)
        );
    }
    for words in [&b"N"[..], b"FF", b"F", b"FWS"] {
        assert_eq!(
            (is(words, false), is(words, true)),
            (Action::Other, Action::Nothing)
        );
    }
}

#[test]
fn times_are_passed_over_records_taken_back_are_not_given_and_the_rest_of_a_page_is_empty() {
    let word = |value: u32| value.to_le_bytes();
    let mut records = Vec::new();
    records.extend([word(30 | 7 << 5), word(1)].concat()); // time extend
    records.extend([word(31 | 7 << 5), word(1)].concat()); // time stamp
    records.extend([word(29 | 7 << 5), word(12), word(0), word(0)].concat()); // taken back
    records.extend([word(2), word(0xaaaa), word(0xbbbb)].concat()); // two words
    records.extend([word(0), word(12), word(0xcccc), word(0xdddd)].concat()); // its length in a word of its own
    records.extend(word(29)); // nothing follows
    records.extend([0xff; 20]);
    let mut found = Vec::new();
    let count = header().records(&page(&records), |record| found.push(record.to_vec()));
    assert_eq!(count, Ok(2));
    let expected = [
        [word(0xaaaa), word(0xbbbb)].concat(),
        [word(0xcccc), word(0xdddd)].concat(),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_page_that_breaks_its_format_or_follows_a_loss_is_not_believed() {
    let read = |page: &[u8]| header().records(page, |_| {});
    let word = |value: u32| value.to_le_bytes();
    let good = page(&bytes(RECORDS));
    for flag in [1_u64 << 31, 1 << 30] {
        let mut page = good.clone();
        let commit = u64::from_le_bytes(page[8..16].try_into().unwrap()) | flag;
        page[8..16].copy_from_slice(&commit.to_le_bytes());
        assert_eq!(read(&page), Err(Bad::Missed));
    }
    let bad = [
        page(&[1, 2, 3]),                          // less than a head
        page(&[word(28), word(0)].concat()),       // passes the end
        page(&[word(0), word(u32::MAX)].concat()), // so does its length
        page(&[word(0), word(0)].concat()),        // no length: would go on for ever
        page(&[word(29 | 32), word(0)].concat()),  // the same, taken back
        page(&word(30)),                           // half a time
        good[..100].to_vec(),                      // cut off
        good[..10].to_vec(),
        Vec::new(),
    ];
    for page in bad {
        assert_eq!(read(&page), Err(Bad::Garbled));
    }
    assert_eq!(read(&page(&[])), Ok(0));
}
