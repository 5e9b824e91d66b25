//! No backtraces in the executable: they cost a third of its size, and without symbols they print no names.
//!
//! std walks the stack through `_Unwind_Backtrace`, a C function of the unwinder's library. This one answers "end of the stack" at
//! once; seeing that, the linker leaves out the unwinder and all of std's reading of debug information. A panic still prints its
//! place and message, and aborts. Only where nothing unwinds (`panic=abort`), and not while testing.

use core::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK` of the unwinder's interface (Itanium C++ ABI, level I; the same number in ARM's EHABI).
const END_OF_STACK: c_int = 5;

/// Never calls `_trace`.
// SAFETY: the name is the unwinder library's own; it is linked only for symbols that nobody else defines, and every caller takes
// the answer for a stack without frames.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_trace: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// The rest of what std names: called by what runs while a stack is unwound, which never happens here.
macro_rules! never_called {
    ($($name:ident)*) => { $(
        // SAFETY: as above; nothing raises, so nothing calls it, and if something did, it would end the process.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )* };
}

never_called! {
    _Unwind_DeleteException _Unwind_FindEnclosingFunction _Unwind_GetCFA _Unwind_GetDataRelBase _Unwind_GetIP _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData _Unwind_GetRegionStart _Unwind_GetTextRelBase _Unwind_RaiseException _Unwind_Resume
    _Unwind_SetGR _Unwind_SetIP
}

// What ARM's own tables name besides (EHABI, sections 7 to 9).
#[cfg(target_arch = "arm")]
never_called! {
    __aeabi_unwind_cpp_pr0 __aeabi_unwind_cpp_pr1 __aeabi_unwind_cpp_pr2 __gnu_unwind_frame _Unwind_Complete _Unwind_VRS_Get
    _Unwind_VRS_Set
}
