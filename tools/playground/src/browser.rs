//! The way in from JavaScript: bytes in the memory of the module.

#![allow(unsafe_code, reason = "memory is what a page and a module share")]

/// So many bytes for the page to write what it asks into. [`run`] takes them back.
#[unsafe(no_mangle)]
pub extern "C" fn space(length: usize) -> *mut u8 {
    Box::leak(vec![0; length].into_boxed_slice()).as_mut_ptr()
}

/// Plays what stands there. The answer is the page's until [`drop_answer`].
///
/// # Safety
///
/// `asked` is of [`space`], with the same length, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn run(asked: *mut u8, length: usize) -> *mut Vec<u8> {
    // SAFETY: by the function's own condition these bytes are a box that was leaked by `space`.
    let asked = unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(asked, length)) };
    Box::into_raw(Box::new(crate::play(&asked).to_string().into_bytes()))
}

/// Where an answer's bytes stand.
///
/// # Safety
///
/// `answer` is of [`run`], and was not dropped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn answer_at(answer: *const Vec<u8>) -> *const u8 {
    // SAFETY: by the function's own condition.
    unsafe { (*answer).as_ptr() }
}

/// How many bytes an answer has.
///
/// # Safety
///
/// `answer` is of [`run`], and was not dropped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn answer_length(answer: *const Vec<u8>) -> usize {
    // SAFETY: by the function's own condition.
    unsafe { (*answer).len() }
}

/// Gives an answer's memory back.
///
/// # Safety
///
/// `answer` is of [`run`], and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn drop_answer(answer: *mut Vec<u8>) {
    // SAFETY: by the function's own condition.
    drop(unsafe { Box::from_raw(answer) });
}
