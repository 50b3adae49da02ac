//! Writing a file: positioned writes by any thread, an atomic rename at the end.

use super::layout::GgufLayout;
use crate::FormatError;
use crate::hash::Sha256;
use crate::{atomic, system};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Choices of a writer.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Replace a file that stands at the final path.
    pub overwrite: bool,
    /// Keep the partial file when the writer is dropped unfinished, to resume it later.
    pub keep_partial: bool,
}

/// A file being written, as `<final path>.kbit-partial`.
#[derive(Debug)]
pub struct GgufWriter {
    layout: GgufLayout,
    file: File,
    partial: PathBuf,
    path: PathBuf,
    keep_partial: bool,
    overwrite: bool,
    done: bool,
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".kbit-partial");
    PathBuf::from(name)
}

fn refuse_existing(path: &Path, overwrite: bool) -> Result<(), FormatError> {
    if !overwrite && path.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: path.to_owned() });
    }
    Ok(())
}

impl GgufWriter {
    /// Starts a file: reserves its room on the disk and writes its header.
    ///
    /// # Errors
    /// When `path` exists and is not to be overwritten, or the disk has no room; nothing is left then.
    pub fn create(layout: &GgufLayout, path: &Path, options: &WriteOptions) -> Result<Self, FormatError> {
        refuse_existing(path, options.overwrite)?;
        let partial = partial_path(path);
        if partial.symlink_metadata().is_ok() {
            std::fs::remove_file(&partial)
                .map_err(FormatError::io(&partial, "removing what an earlier run left"))?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&partial);
        let file = file.map_err(FormatError::io(&partial, "creating"))?;
        let mut writer = Self {
            layout: layout.clone(),
            file,
            partial,
            path: path.to_owned(),
            keep_partial: false,
            overwrite: options.overwrite,
            done: false,
        };
        writer.reserve()?;
        writer.write_raw(0, layout.header())?;
        writer.keep_partial = options.keep_partial;
        Ok(writer)
    }

    /// Takes up the partial file of an earlier writer with the same layout.
    ///
    /// # Errors
    /// When there is none, or it has another length or header.
    pub fn resume(layout: &GgufLayout, path: &Path, options: &WriteOptions) -> Result<Self, FormatError> {
        refuse_existing(path, options.overwrite)?;
        let partial = partial_path(path);
        let file = OpenOptions::new().read(true).write(true).open(&partial);
        let file = file.map_err(FormatError::io(&partial, "opening what an earlier run left"))?;
        let length = file.metadata().map_err(FormatError::io(&partial, "looking at the file"))?.len();
        let mut header = vec![0; layout.header().len()];
        let same = length == layout.file_bytes()
            && file.read_exact_at(&mut header, 0).is_ok()
            && header == layout.header();
        if !same {
            return Err(FormatError::damaged(&partial, 0, "it belongs to another plan"));
        }
        Ok(Self {
            layout: layout.clone(),
            file,
            partial,
            path: path.to_owned(),
            keep_partial: options.keep_partial,
            overwrite: options.overwrite,
            done: false,
        })
    }

    /// The partial file.
    #[must_use]
    pub fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// Reserves the whole file, so that a full disk shows now.
    fn reserve(&self) -> Result<(), FormatError> {
        let bytes = self.layout.file_bytes();
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // File systems that cannot reserve: compare with the free space, and set the length.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let free = self.free()?;
                if free < bytes {
                    return Err(FormatError::DiskFull { path: self.path.clone(), needed: bytes, free });
                }
                self.file.set_len(bytes).map_err(FormatError::io(&self.partial, "setting the length"))
            }
            Err(Errno::NOSPC | Errno::FBIG | Errno::DQUOT) => {
                Err(FormatError::DiskFull { path: self.path.clone(), needed: bytes, free: self.free()? })
            }
            Err(error) => Err(FormatError::io(&self.partial, "reserving room")(error.into())),
        }
    }

    fn free(&self) -> Result<u64, FormatError> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        system::disk_free(folder)
    }

    fn write_raw(&self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        self.file.write_all_at(bytes, offset).map_err(FormatError::io(&self.partial, "writing"))
    }

    fn place(&self, index: usize) -> Result<(&str, u64, u64), FormatError> {
        self.layout.tensor(index).ok_or_else(|| FormatError::Unwritable {
            what: format!("tensor {index}"),
            reason: format!("the file has {} tensors", self.layout.tensor_count()),
        })
    }

    /// Writes `bytes` at `offset` of tensor `index`. Any thread.
    ///
    /// # Errors
    /// When they reach past the tensor's end, or the system refuses.
    pub fn write_at(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let (name, start, length) = self.place(index)?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > length) {
            let reason = format!("{} bytes at {offset} reach past its {length} bytes", bytes.len());
            return Err(FormatError::Unwritable { what: name.to_owned(), reason });
        }
        self.write_raw(start + offset, bytes)
    }

    /// SHA-256 of what stands in tensor `index` now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn tensor_sha256(&self, index: usize) -> Result<String, FormatError> {
        let (_, start, length) = self.place(index)?;
        hash_range(&self.file, &self.partial, start, length)
    }

    /// Replaces a text of the header by another of the same length: the value of `key`, or element `index` of its list.
    ///
    /// # Errors
    /// When there is no such text, or the lengths differ.
    pub fn patch_metadata_string(
        &self,
        key: &str,
        index: Option<usize>,
        text: &str,
    ) -> Result<(), FormatError> {
        match self.layout.text_place(key, index) {
            Some((offset, length)) if length == text.len() => self.write_raw(offset as u64, text.as_bytes()),
            _ => Err(FormatError::Unwritable {
                what: key.to_owned(),
                reason: "no text of this length stands there".into(),
            }),
        }
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync_data(&self) -> Result<(), FormatError> {
        self.file.sync_data().map_err(FormatError::io(&self.partial, "syncing"))
    }

    /// Syncs the file and renames it to its final path.
    ///
    /// # Errors
    /// When the system refuses, or a file appeared there meanwhile.
    pub fn finish(mut self) -> Result<(), FormatError> {
        self.file.sync_all().map_err(FormatError::io(&self.partial, "syncing"))?;
        refuse_existing(&self.path, self.overwrite)?;
        std::fs::rename(&self.partial, &self.path)
            .map_err(FormatError::io(&self.path, "renaming the finished file"))?;
        self.done = true;
        atomic::sync_folder(&self.path)
    }

    /// Gives up: removes the partial file.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(mut self) -> Result<(), FormatError> {
        self.done = true;
        std::fs::remove_file(&self.partial).map_err(FormatError::io(&self.partial, "removing"))
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.done && !self.keep_partial {
            // Nobody is left to tell; a partial file that stays is removed by the next writer.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// SHA-256 of `length` bytes of `file` from `start`.
pub(crate) fn hash_range(file: &File, path: &Path, start: u64, length: u64) -> Result<String, FormatError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < length {
        let count = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..count], start + done).map_err(FormatError::io(path, "reading"))?;
        hash.update(&buffer[..count]);
        done += count as u64;
    }
    Ok(hash.hex())
}
