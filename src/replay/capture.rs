//! A capture that can be read again and again: what is compared is read more than once, so that
//! nothing of it has to be kept.

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use bytes::Bytes;

use crate::io::pcap::{NotACapture, Reader};

/// How a capture is opened.
type Open = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync;

/// One capture.
pub struct Capture {
    name: String,
    open: Box<Open>,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capture({})", self.name)
    }
}

/// Why a capture is not read.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {why}")]
pub struct Unreadable {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: NotACapture,
}

impl Capture {
    /// One in a file. A pipe has no second time, and is refused when it is opened.
    pub fn file(path: &Path) -> Self {
        let name = path.display().to_string();
        let path = path.to_owned();
        let open = move || -> io::Result<Box<dyn Read + Send>> {
            // Asked before it is opened: that would wait for a pipe's writer.
            if !std::fs::metadata(&path)?.is_file() {
                let what = "this is no regular file; a capture is read more than once, so write \
                            it to a file first";
                return Err(io::Error::other(what));
            }
            Ok(Box::new(File::open(&path)?))
        };
        Self { name, open: Box::new(open) }
    }

    /// One in memory.
    pub fn bytes(name: &str, bytes: Bytes) -> Self {
        let open = move || -> io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(Cursor::new(bytes.clone())))
        };
        Self { name: name.to_owned(), open: Box::new(open) }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins to read it.
    pub fn reader(&self) -> Result<Reader, Unreadable> {
        let read = (self.open)().map_err(NotACapture::Io).and_then(Reader::new);
        read.map_err(|why| Unreadable { name: self.name.clone(), why })
    }
}
