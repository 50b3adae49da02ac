//! Anonymous memory files: sealed images of plugins for the dynamic linker, and shared mappings for worker processes.
//!
//! Invariants:
//! - An image is sealed against any change before it is used, so what was hashed is what is loaded.
//! - A [`Mapping`] is backed by a file sealed against shrinking, so no other process can take its storage away
//!   (which would turn an access into SIGBUS). Its address stays the same until it is dropped.
//! - Offsets and lengths are checked against the mapping in [`Mapping::at`]; all access goes through it.
#![expect(unsafe_code, reason = "memory maps")]

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::Duration;

const FIXED_SIZE: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// A file that the dynamic linker can open.
pub(crate) struct Image {
    path: PathBuf,
    /// Keeps a memory file's number from being reused; `None` for a file in a folder.
    descriptor: Option<OwnedFd>,
}

impl Image {
    /// A sealed memory file with `bytes`, or a file in a private folder where memory files must not be executable.
    pub(crate) fn new(name: &str, bytes: &[u8]) -> io::Result<Self> {
        match Self::in_memory(name, bytes) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::in_folder(name, bytes),
            result => result,
        }
    }

    fn in_memory(name: &str, bytes: &[u8]) -> io::Result<Self> {
        let descriptor = sealed(name, bytes, true)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        Ok(Self { path, descriptor: Some(descriptor) })
    }

    /// Writes into a new folder with mode 0700, so that nobody else can swap the file before it is opened.
    pub(crate) fn in_folder(name: &str, bytes: &[u8]) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for base in base.into_iter().chain([std::env::temp_dir()]) {
            for _ in 0..16 {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let folder = base.join(format!("kbit-{}-{number}-{:x}", std::process::id(), address_noise()));
                match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    Err(error) => last = error,
                    Ok(()) => {
                        let path = folder.join(Path::new(name).file_name().unwrap_or("plugin.so".as_ref()));
                        let image = Self { path, descriptor: None };
                        let mut options = File::options();
                        options.write(true).create_new(true).mode(0o500);
                        options.open(&image.path)?.write_all(bytes)?;
                        return Ok(image);
                    }
                }
                break;
            }
        }
        Err(last)
    }

    /// What to give to the dynamic linker.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To be called once the library is loaded: a memory file stays open for good, since glibc knows libraries by
    /// their path and a reused descriptor number would yield the first library again.
    pub(crate) fn keep_for_good(mut self) -> Option<BorrowedFd<'static>> {
        let kept: &'static OwnedFd = Box::leak(Box::new(self.descriptor.take()?));
        // Nothing is left for `drop` to do: it removes files in folders only, which have no descriptor.
        self.path = PathBuf::new();
        Some(kept.as_fd())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A loaded file in a folder stays mapped after its name is gone.
        if self.descriptor.is_none()
            && let Some(folder) = self.path.parent()
            && folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kbit-"))
        {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Something that another process does not know, from address space randomisation.
fn address_noise() -> usize {
    let on_heap = Box::new(0u8);
    std::ptr::from_ref(&*on_heap).addr() ^ std::process::id() as usize
}

/// A memory file with `bytes`, sealed against any change.
pub(crate) fn sealed(name: &str, bytes: &[u8], executable: bool) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let kind = if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    let descriptor = match rustix::fs::memfd_create(name, flags | kind) {
        // Kernels before 6.3 know neither flag; their memory files are executable.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        result => result?,
    };
    let mut file = File::from(descriptor);
    file.write_all(bytes)?;
    let descriptor = OwnedFd::from(file);
    seal(&descriptor)?;
    Ok(descriptor)
}

/// Seals a file that nobody has mapped and nobody else has open against any change.
///
/// The kernel refuses `WRITE` while a page of the file has another reference, as pages that were just written have for a
/// moment. `FUTURE_WRITE` (Linux 5.1) asks for no such thing, and is as good where no writable mapping exists yet.
fn seal(descriptor: &OwnedFd) -> io::Result<()> {
    for pause in 0..10 {
        match rustix::fs::fcntl_add_seals(descriptor, FIXED_SIZE | SealFlags::WRITE) {
            Err(Errno::BUSY) => {}
            result => return Ok(result?),
        }
        match rustix::fs::fcntl_add_seals(descriptor, FIXED_SIZE | SealFlags::FUTURE_WRITE) {
            Err(Errno::INVAL) => std::thread::sleep(Duration::from_millis(1 << pause)),
            result => return Ok(result?),
        }
    }
    Err(Errno::BUSY.into())
}

/// Memory that two processes see.
pub(crate) struct Mapping {
    file: OwnedFd,
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping is plain memory owned by this value; who may access which bytes when is settled by the callers
// of `at` (one request or reply owns a channel's mapping at a time).
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references give out raw pointers only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New zeroed memory of at least `len` bytes, for reading and writing by both sides.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let len = round_up(len)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match rustix::fs::memfd_create("kbit-slab", flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create("kbit-slab", flags)?,
            result => result?,
        };
        rustix::fs::ftruncate(&file, len as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        Self::map(file, len, true)
    }

    /// Maps a file that the other side made with [`Mapping::new`] or [`sealed`].
    pub(crate) fn from_file(file: OwnedFd, writable: bool) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the shared memory is not sealed against shrinking",
            ));
        }
        let len = rustix::fs::fstat(&file)?.st_size;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?;
        Self::map(file, len, writable)
    }

    fn map(file: OwnedFd, len: usize, writable: bool) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { file, start: NonNull::<Line>::dangling().cast(), len, writable });
        }
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = if writable { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: a new mapping at an address of the kernel's choice, `len` bytes of a file that cannot shrink.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, start, len, writable })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn file(&self) -> impl AsFd {
        self.file.as_fd()
    }

    /// Address of `len` bytes from `offset`, or `None` where they are not inside.
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset <= end <= self.len`, so the result stays inside the mapping or one past its end.
        (end <= self.len).then(|| unsafe { self.start.add(offset) })
    }

    /// Copies `bytes` in. False where they do not fit.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        match self.at(offset, bytes.len()) {
            Some(place) if self.writable => {
                // SAFETY: `at` checked the range; `bytes` is memory of this process apart from the mapping.
                unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
                true
            }
            _ => false,
        }
    }

    /// Copies out. False where the bytes are not inside.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        match self.at(offset, out.len()) {
            Some(place) => {
                // SAFETY: as in `write`.
                unsafe { NonNull::from(&mut *out).cast::<u8>().copy_from_nonoverlapping(place, out.len()) };
                true
            }
            None => false,
        }
    }

    /// The bytes themselves, for the side whose turn it is.
    ///
    /// # Safety
    /// Until the slice is dropped, nobody writes these bytes: neither this process nor the other one.
    pub(crate) unsafe fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        // SAFETY: `at` checked the range; the caller promises that nobody writes.
        self.at(offset, len).map(|place| unsafe { std::slice::from_raw_parts(place.as_ptr(), len) })
    }

    /// The bytes themselves, to write.
    ///
    /// # Safety
    /// Until the slice is dropped, nobody else reads or writes these bytes: neither this process nor the other one.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that no other reference exists")]
    pub(crate) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let place = self.at(offset, len).filter(|_| self.writable)?;
        // SAFETY: `at` checked the range; the caller promises exclusive access.
        Some(unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: exactly the range that `map` mapped; no reference into it outlives the value.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

/// Alignment of the parts of a message in shared memory.
#[repr(align(64))]
struct Line;

fn round_up(len: usize) -> io::Result<usize> {
    len.checked_next_multiple_of(4096).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_image_cannot_be_changed() {
        let image = sealed("test", b"hello", false).unwrap();
        let mut file = File::from(image);
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn sealing_does_not_depend_on_what_the_kernel_does_with_fresh_pages() {
        // Enough pages that some are on the kernel's lists when the seal comes.
        let bytes = vec![7u8; 1 << 20];
        for _ in 0..200 {
            let mut file = File::from(sealed("test", &bytes, false).unwrap());
            assert!(file.write_all(b"x").is_err());
        }
    }

    #[test]
    fn a_private_folder_holds_the_file_and_goes_away() {
        use std::os::unix::fs::PermissionsExt;
        let image = Image::in_folder("libx.so", b"bytes").unwrap();
        let folder = image.path().parent().unwrap().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read(image.path()).unwrap(), b"bytes");
        assert!(image.keep_for_good().is_none());
        assert!(!folder.exists());
    }

    #[test]
    fn both_sides_see_the_bytes_and_neither_can_shrink_them() {
        let one = Mapping::new(10).unwrap();
        let other = Mapping::from_file(one.file.try_clone().unwrap(), true).unwrap();
        assert!(one.write(3, b"abc"));
        let mut seen = [0; 3];
        assert!(other.read(3, &mut seen));
        assert_eq!(&seen, b"abc");
        assert!(!one.write(one.len() - 2, b"abc") && !other.read(usize::MAX, &mut seen));
        assert!(rustix::fs::ftruncate(&other.file, 0).is_err());
    }

    #[test]
    fn refuses_shared_memory_that_could_shrink() {
        let file = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        assert!(Mapping::from_file(file, true).is_err());
    }
}
