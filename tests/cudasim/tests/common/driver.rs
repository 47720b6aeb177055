//! The driver API as programs of these tests use it: handles and addresses as they are, errors as numbers, nothing freed
//! unless it is asked for, so that everything can be done wrong.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use layerstream_kernels::launch::Launch;

/// What a call returned, if it was not success.
pub type Result<T> = std::result::Result<T, i32>;

pub type Stream = sys::CUstream;
pub type Event = sys::CUevent;
pub type Module = sys::CUmodule;
pub type Function = sys::CUfunction;

fn ok(result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(result as i32) }
}

macro_rules! call {
    ($name:ident($($argument:expr),*)) => {
        // SAFETY: pointers in the arguments are to variables of the caller; whatever else may be wrong with the call is
        // what the simulated driver is there to find.
        ok(unsafe { sys::$name($($argument),*) })
    };
}

/// Starts the driver and makes the context of a card current.
pub fn open(device: i32) -> Result<()> {
    call!(cuInit(0))?;
    let mut context = null_mut();
    call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
    call!(cuCtxSetCurrent(context))
}

pub fn close(device: i32) -> Result<()> {
    call!(cuDevicePrimaryCtxRelease_v2(device))
}

pub fn version() -> i32 {
    let mut version = 0;
    call!(cuDriverGetVersion(&mut version)).expect("works without anything else");
    version
}

pub fn count() -> Result<i32> {
    let mut count = 0;
    call!(cuInit(0))?;
    call!(cuDeviceGetCount(&mut count)).map(|()| count)
}

/// Free and all bytes.
pub fn memory() -> Result<(usize, usize)> {
    let (mut free, mut total) = (0, 0);
    call!(cuMemGetInfo_v2(&mut free, &mut total)).map(|()| (free, total))
}

pub fn alloc(len: usize) -> Result<u64> {
    let mut address = 0;
    call!(cuMemAlloc_v2(&mut address, len)).map(|()| address)
}

pub fn free(address: u64) -> Result<()> {
    call!(cuMemFree_v2(address))
}

pub fn register(memory: &[u8]) -> Result<()> {
    call!(cuMemHostRegister_v2(memory.as_ptr() as *mut c_void, memory.len(), 0))
}

pub fn unregister(memory: &[u8]) -> Result<()> {
    call!(cuMemHostUnregister(memory.as_ptr() as *mut c_void))
}

/// Page-locked memory of the driver's own. Valid until `free_host`, or to the end of the process.
pub fn host(len: usize) -> Result<&'static mut [u8]> {
    let mut address = null_mut();
    call!(cuMemHostAlloc(&mut address, len, 0))?;
    // SAFETY: the driver has given `len` bytes; programs that use them after `free_host` do so to be caught.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast(), len) })
}

pub fn free_host(memory: &[u8]) -> Result<()> {
    call!(cuMemFreeHost(memory.as_ptr() as *mut c_void))
}

pub fn upload(to: u64, from: &[u8]) -> Result<()> {
    call!(cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len()))
}

pub fn download(from: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    call!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), from, len)).map(|()| bytes)
}

pub fn upload_async(to: u64, from: &[u8], stream: Stream) -> Result<()> {
    call!(cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), stream))
}

pub fn download_async(to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
    call!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), stream))
}

pub fn copy_async(to: u64, from: u64, len: usize, stream: Stream) -> Result<()> {
    call!(cuMemcpyDtoDAsync_v2(to, from, len, stream))
}

pub fn fill_async(to: u64, value: u8, len: usize, stream: Stream) -> Result<()> {
    call!(cuMemsetD8Async(to, value, len, stream))
}

/// A stream that does not wait for the default stream.
pub fn stream() -> Result<Stream> {
    let mut stream = null_mut();
    call!(cuStreamCreate(&mut stream, 1)).map(|()| stream)
}

/// A stream that waits for the default stream, and that for it.
pub fn blocking_stream() -> Result<Stream> {
    let mut stream = null_mut();
    call!(cuStreamCreate(&mut stream, 0)).map(|()| stream)
}

pub const DEFAULT: Stream = null_mut();

pub fn destroy_stream(stream: Stream) -> Result<()> {
    call!(cuStreamDestroy_v2(stream))
}

pub fn synchronize(stream: Stream) -> Result<()> {
    call!(cuStreamSynchronize(stream))
}

pub fn synchronize_all() -> Result<()> {
    call!(cuCtxSynchronize())
}

pub fn query(stream: Stream) -> Result<()> {
    call!(cuStreamQuery(stream))
}

pub fn event() -> Result<Event> {
    let mut event = null_mut();
    call!(cuEventCreate(&mut event, 0)).map(|()| event)
}

pub fn destroy_event(event: Event) -> Result<()> {
    call!(cuEventDestroy_v2(event))
}

pub fn record(event: Event, stream: Stream) -> Result<()> {
    call!(cuEventRecord(event, stream))
}

pub fn wait(stream: Stream, event: Event) -> Result<()> {
    call!(cuStreamWaitEvent(stream, event, 0))
}

pub fn synchronize_event(event: Event) -> Result<()> {
    call!(cuEventSynchronize(event))
}

pub fn query_event(event: Event) -> Result<()> {
    call!(cuEventQuery(event))
}

pub fn elapsed(start: Event, end: Event) -> Result<f32> {
    let mut milliseconds = 0.0;
    call!(cuEventElapsedTime_v2(&mut milliseconds, start, end)).map(|()| milliseconds)
}

pub fn load(image: &[u8]) -> Result<Module> {
    let mut module = null_mut();
    call!(cuModuleLoadData(&mut module, image.as_ptr().cast())).map(|()| module)
}

pub fn unload(module: Module) -> Result<()> {
    call!(cuModuleUnload(module))
}

pub fn function(module: Module, name: &str) -> Result<Function> {
    let name = CString::new(name).expect("a name of a kernel");
    let mut function = null_mut();
    call!(cuModuleGetFunction(&mut function, module, name.as_ptr())).map(|()| function)
}

pub fn launch<P: Copy>(function: Function, launch: &Launch, params: &P, stream: Stream) -> Result<()> {
    let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
    let mut params = *params;
    let mut pointers = [(&raw mut params).cast::<c_void>()];
    let nothing = null_mut();
    call!(cuLaunchKernel(function, gx, gy, gz, bx, by, bz, launch.shared, stream, pointers.as_mut_ptr(), nothing))
}
