//! Page-aligned memory straight from the kernel: for O_DIRECT buffers, and for the spool, which is reserved whole and touched as needed.

use rustix::io::Result;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Zero bytes to write or to hash. Without the attribute they would lie in the executable, as every constant does.
// SAFETY: a section that the loader fills with zeros, which is what the value says; nothing writes there.
#[unsafe(link_section = ".bss.zeros")]
pub(crate) static ZEROS: [u8; 8 << 10] = [0; 8 << 10];

/// An anonymous private mapping, zeroed, aligned to a page.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping is owned by this value alone; access follows the borrow of the value.
unsafe impl Send for Pages {}
// SAFETY: as above; `&Pages` gives only `&[u8]`.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `length` bytes (at least one). Pages are touched only when used; no swap is reserved.
    pub fn new(length: usize) -> Result<Self> {
        let length = length.max(1);
        // SAFETY: a new anonymous mapping at an address the kernel chooses aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// Maps the first `length` bytes of a file, shared with it: the kernel keeps in memory what it has room for. All of them must
    /// have been allocated on its disk; where the disk fails nevertheless, the process dies by SIGBUS.
    pub fn of_file(file: impl std::os::fd::AsFd, length: usize) -> Result<Self> {
        let length = length.max(1);
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing; that another process could write to the file
        // is ruled out by who made it (it has no name).
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// The first byte, for neighbours in `sys` that hand out disjoint parts.
    pub(super) fn base(&self) -> *mut u8 {
        self.start
    }

    /// The whole mapping, for the rest of the process's life: what threads share that may outlive everything else.
    pub fn leak(self) -> &'static mut [u8] {
        let pages = std::mem::ManuallyDrop::new(self);
        // SAFETY: as in `deref_mut`; the value that owned the mapping is gone and never unmaps it, so the borrow is unique
        // and may last for ever.
        unsafe { std::slice::from_raw_parts_mut(pages.start, pages.length) }
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `length` readable bytes, initialised (zeroed by the kernel), owned by self.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping came from `new` and nothing can borrow it any more. An error would only leak it.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// Whether so many bytes of addresses could be mapped. Nothing can be written there, so no limit but that of addresses counts.
pub(crate) fn has_room(bytes: u64) -> bool {
    let Ok(length) = usize::try_from(bytes) else {
        return false;
    };
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let length = length.max(1);
    // SAFETY: a new anonymous mapping at an address the kernel chooses aliases nothing.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), flags) };
    // SAFETY: it is ours, whole, and nobody has its address.
    start.is_ok_and(|start| unsafe { munmap(start, length) }.is_ok())
}

/// What may be all zeros.
pub(crate) trait Zeroed: Copy {}
impl Zeroed for u64 {}
impl<const N: usize> Zeroed for [u32; N] {}

/// So many zeros, touched as they are needed; `None` where there is no room for them, which a `vec!` would end the process for.
pub(crate) fn zeroed<T: Zeroed>(count: usize) -> Option<Vec<T>> {
    let layout = std::alloc::Layout::array::<T>(count).ok()?;
    if layout.size() == 0 {
        return (count == 0).then(Vec::new);
    }
    // SAFETY: the layout has a size.
    let start = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    // SAFETY: from the global allocator, with the layout of that many values, each of which may be zeros.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start, count, count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_had_as_far_as_there_are_any() {
        assert!(has_room(0) && has_room(1 << 20));
        assert!(!has_room(u64::MAX));
    }

    #[test]
    fn zeros_are_had_as_far_as_there_is_room_and_more_is_no_end_of_the_process() {
        let mut few = zeroed::<[u32; 2]>(3).unwrap();
        few[2] = [7, 8];
        assert_eq!(few, [[0, 0], [0, 0], [7, 8]]);
        assert_eq!(zeroed::<u64>(0), Some(Vec::new()));
        // With 32 bits it may just fit.
        assert!(cfg!(target_pointer_width = "32") || zeroed::<u64>(usize::MAX / 32).is_none());
        assert_eq!(zeroed::<u64>(usize::MAX), None);
    }

    #[test]
    fn pages_are_zero_aligned_and_writable() {
        let mut pages = Pages::new(10_000).unwrap();
        assert_eq!(pages.as_ptr().align_offset(4096), 0);
        assert!(pages.iter().all(|byte| *byte == 0));
        pages[9_999] = 7;
        assert_eq!(pages[9_999], 7);
        assert_eq!(pages.len(), 10_000);
        assert!(!pages.is_empty());
    }

    #[test]
    fn a_leaked_mapping_keeps_its_bytes_and_stays_mapped() {
        let mut pages = Pages::new(3 * 4096).unwrap();
        pages[4096] = 9;
        let bytes = pages.leak();
        assert_eq!(bytes.len(), 3 * 4096);
        let (first, rest) = bytes.split_at_mut(4096);
        first.fill(1);
        assert_eq!((rest[0], rest[4096], first[0]), (9, 0, 1));
    }
}
