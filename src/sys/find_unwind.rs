//! Where the unwind table is, for tests on riscv64: what is built along there unwinds with Debian's libgcc, which asks glibc for it.
//!
//! A test is one static object, and its own program headers say it.

use core::ffi::{c_int, c_ulong, c_void};
use std::ptr::with_exposed_provenance;

/// glibc's `struct dl_find_object` (its dlfcn.h) where there is no `dlfo_eh_dbase`.
#[repr(C)]
struct DlFound {
    flags: u64,
    begin: *const c_void,
    end: *const c_void,
    object: *const c_void,
    table: *const c_void,
    reserved: [u64; 7],
}

/// `Elf64_Phdr` (elf.h).
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: usize,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
/// Of the auxiliary vector (getauxval(3)).
const AT_PHDR: c_ulong = 3;
const AT_PHNUM: c_ulong = 5;

unsafe extern "C" {
    // Gives the number of this kind, or 0.
    safe fn getauxval(kind: c_ulong) -> usize;
}

/// The same table whatever the place; -1 where there is none.
// SAFETY: glibc's own name for it, with its meaning, where there is no glibc.
#[unsafe(no_mangle)]
extern "C" fn _dl_find_object(_place: *const c_void, found: *mut DlFound) -> c_int {
    let first = with_exposed_provenance::<ProgramHeader>(getauxval(AT_PHDR));
    for index in 0..getauxval(AT_PHNUM) {
        // SAFETY: the kernel says so many headers lie there, and they stay as long as the program.
        let header = unsafe { &*first.add(index) };
        if header.kind == PT_GNU_EH_FRAME {
            // SAFETY: the caller's room for one answer.
            unsafe { (*found).table = with_exposed_provenance(header.address) };
            return 0;
        }
    }
    -1
}
