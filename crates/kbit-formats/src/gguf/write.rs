//! Writing a file or a set of shards: positioned writes by any thread, an atomic rename at the end.

use super::layout::GgufLayout;
use crate::FormatError;
use crate::hash::Checksum;
use crate::map::Mapped;
use crate::{atomic, system};
use rustix::fs::{FallocateFlags, FsWord, fallocate, fstatfs};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Choices of a writer.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Replace a file that stands at the final path.
    pub overwrite: bool,
    /// Keep the partial file when the writer is dropped unfinished, to resume it later.
    pub keep_partial: bool,
}

/// A model being written, each file as `<final path>.kbit-partial`.
#[derive(Debug)]
pub struct GgufWriter {
    layout: GgufLayout,
    parts: Vec<Part>,
    keep_partial: bool,
    overwrite: bool,
    done: bool,
}

/// One file of it.
#[derive(Debug)]
struct Part {
    file: File,
    partial: PathBuf,
    path: PathBuf,
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
    /// Starts a file, or the shards of the layout: reserves their room on the disk and writes their headers.
    ///
    /// # Errors
    /// When a file exists and is not to be overwritten, or the disk has no room; nothing is left then.
    pub fn create(layout: &GgufLayout, path: &Path, options: &WriteOptions) -> Result<Self, FormatError> {
        let paths = layout.paths(path);
        paths.iter().try_for_each(|path| refuse_existing(path, options.overwrite))?;
        let mut writer = Self {
            layout: layout.clone(),
            parts: Vec::with_capacity(paths.len()),
            keep_partial: false,
            overwrite: options.overwrite,
            done: false,
        };
        for (number, path) in paths.into_iter().enumerate() {
            let partial = partial_path(&path);
            if partial.symlink_metadata().is_ok() {
                std::fs::remove_file(&partial)
                    .map_err(FormatError::io(&partial, "removing what an earlier run left"))?;
            }
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&partial);
            let file = file.map_err(FormatError::io(&partial, "creating"))?;
            writer.parts.push(Part { file, partial, path });
            let (header, bytes) = layout.file(number);
            writer.parts[number].reserve(bytes)?;
            writer.parts[number].write(0, header)?;
        }
        writer.keep_partial = options.keep_partial;
        Ok(writer)
    }

    /// Takes up the partial files of an earlier writer with the same layout. Shards that it had renamed already, when it was
    /// stopped between two of them, are taken back.
    ///
    /// # Errors
    /// When there are none, or they have another length or header.
    pub fn resume(layout: &GgufLayout, path: &Path, options: &WriteOptions) -> Result<Self, FormatError> {
        let paths = layout.paths(path);
        // Shards are renamed from the last to the first, so that a set whose first stands is whole.
        refuse_existing(&paths[0], options.overwrite)?;
        let mut parts = Vec::with_capacity(paths.len());
        for (number, path) in paths.into_iter().enumerate() {
            let partial = partial_path(&path);
            let (header, bytes) = layout.file(number);
            let found = if partial.exists() { &partial } else { &path };
            let file = OpenOptions::new().read(true).write(true).open(found);
            let file = file.map_err(FormatError::io(&partial, "opening what an earlier run left"))?;
            let length = file.metadata().map_err(FormatError::io(found, "looking at the file"))?.len();
            let mut start = vec![0; header.len()];
            let same = length == bytes
                && file.read_exact_at(&mut start, 0).is_ok()
                && layout.is_header(number, &start);
            if !same {
                return Err(FormatError::damaged(found, 0, "it belongs to another plan"));
            }
            if found == &path {
                std::fs::rename(&path, &partial).map_err(FormatError::io(&path, "taking the shard back"))?;
            } else {
                refuse_existing(&path, options.overwrite)?;
            }
            let part = Part { file, partial, path };
            part.write(0, header)?;
            parts.push(part);
        }
        Ok(Self {
            layout: layout.clone(),
            parts,
            keep_partial: options.keep_partial,
            overwrite: options.overwrite,
            done: false,
        })
    }

    /// Maps the partial file that holds tensor `index`; the layout says where.
    ///
    /// # Errors
    /// When there is no such tensor, or the system refuses.
    pub fn map(&self, index: usize) -> Result<Arc<Mapped>, FormatError> {
        let (part, number) = self.part(index)?;
        Ok(Arc::new(Mapped::new(&part.file, &part.partial, self.layout.file(number).1)?))
    }

    fn part(&self, index: usize) -> Result<(&Part, usize), FormatError> {
        let number = self.layout.shard_of(index).ok_or_else(|| FormatError::Unwritable {
            what: format!("tensor {index}"),
            reason: format!("the model has {} tensors", self.layout.tensor_count()),
        })?;
        Ok((&self.parts[number], number))
    }

    fn place(&self, index: usize) -> Result<(&Part, &str, u64, u64), FormatError> {
        let (part, _) = self.part(index)?;
        let (name, start, length) = self.layout.tensor(index).unwrap_or_default();
        Ok((part, name, start, length))
    }

    /// Writes `bytes` at `offset` of tensor `index`. Any thread.
    ///
    /// # Errors
    /// When they reach past the tensor's end, or the system refuses.
    pub fn write_at(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let (part, name, start, length) = self.place(index)?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > length) {
            let reason = format!("{} bytes at {offset} reach past its {length} bytes", bytes.len());
            return Err(FormatError::Unwritable { what: name.to_owned(), reason });
        }
        part.write(start + offset, bytes)
    }

    /// `checksum` over what stands in tensor `index` now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn tensor_checksum(&self, index: usize, checksum: Checksum) -> Result<String, FormatError> {
        let (part, _, start, length) = self.place(index)?;
        checksum_range(checksum, &part.file, &part.partial, start, length)
    }

    /// Replaces a text of the (first) header by another of the same length: the value of `key`, or element `index` of its
    /// list.
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
            Some((offset, length)) if length == text.len() => {
                self.parts[0].write(offset as u64, text.as_bytes())
            }
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
        let sync = |part: &Part| part.file.sync_data().map_err(FormatError::io(&part.partial, "syncing"));
        self.parts.iter().try_for_each(sync)
    }

    /// Syncs the files and renames them to their final paths: shards only when all are on disk, the first, by which a set is
    /// opened, at the end. The final paths.
    ///
    /// # Errors
    /// When the system refuses, or a file appeared there meanwhile.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, FormatError> {
        for part in &self.parts {
            part.file.sync_all().map_err(FormatError::io(&part.partial, "syncing"))?;
            refuse_existing(&part.path, self.overwrite)?;
        }
        for (number, part) in self.parts.iter().enumerate().rev() {
            if let Err(error) = std::fs::rename(&part.partial, &part.path) {
                // Back to where it was, so that no shard stands without its set.
                for renamed in &self.parts[number + 1..] {
                    let _ = std::fs::rename(&renamed.path, &renamed.partial);
                }
                return Err(FormatError::io(&part.path, "renaming the finished file")(error));
            }
        }
        self.done = true;
        atomic::sync_folder(&self.parts[0].path)?;
        Ok(self.parts.iter().map(|part| part.path.clone()).collect())
    }

    /// Gives up: removes the partial files.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn discard(mut self) -> Result<(), FormatError> {
        self.done = true;
        let remove = |part: &Part| {
            std::fs::remove_file(&part.partial).map_err(FormatError::io(&part.partial, "removing"))
        };
        self.parts.iter().try_for_each(remove)
    }
}

/// Linux's number for file systems in memory. To reserve there is to zero every page, on one thread, before the first
/// weight is read.
const TMPFS_MAGIC: FsWord = 0x0102_1994;

impl Part {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        self.file.write_all_at(bytes, offset).map_err(FormatError::io(&self.partial, "writing"))
    }

    /// Reserves the whole file, so that a full disk shows now.
    fn reserve(&self, bytes: u64) -> Result<(), FormatError> {
        if fstatfs(&self.file).is_ok_and(|found| found.f_type == TMPFS_MAGIC) {
            return self.set_length(bytes);
        }
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // File systems that cannot reserve.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.set_length(bytes),
            Err(Errno::NOSPC | Errno::FBIG | Errno::DQUOT) => {
                Err(FormatError::DiskFull { path: self.path.clone(), needed: bytes, free: self.free()? })
            }
            Err(error) => Err(FormatError::io(&self.partial, "reserving room")(error.into())),
        }
    }

    /// Compares with the free space, and sets the length.
    fn set_length(&self, bytes: u64) -> Result<(), FormatError> {
        let free = self.free()?;
        if free < bytes {
            return Err(FormatError::DiskFull { path: self.path.clone(), needed: bytes, free });
        }
        self.file.set_len(bytes).map_err(FormatError::io(&self.partial, "setting the length"))
    }

    fn free(&self) -> Result<u64, FormatError> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        system::disk_free(folder)
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.done && !self.keep_partial {
            // Nobody is left to tell; a partial file that stays is removed by the next writer.
            for part in &self.parts {
                let _ = std::fs::remove_file(&part.partial);
            }
        }
    }
}

/// `hash` over `length` bytes of `file` from `start`.
fn checksum_range(
    mut hash: Checksum,
    file: &File,
    path: &Path,
    start: u64,
    length: u64,
) -> Result<String, FormatError> {
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
