//! The key that a gateway and its agents have in common: a file with 64 hexadecimal digits.
//!
//! Who has it may read and write what the agents serve, so nobody but its owner may read it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// More is no key, and is not read.
const FILE_LEN_MAX: u64 = 4096;

/// A key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_LEN]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(
        "the key {} cannot be read ({source}); `shadowvm agent key FILE` makes one, and both sides \
         need the same",
        file.display()
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it.
    #[error("the key {} can be read by others (mode {mode:04o}); chmod 600 {}", file.display(),
        file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is something else.
    #[error("{} is no key: a key is one line of 64 hexadecimal digits", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
    },
    /// It cannot be made.
    #[error("the key {} cannot be made ({source})", file.display())]
    Make {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Key {
    /// A key of these bytes.
    pub const fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Makes a new one, in a file that was not there.
    pub fn make(file: &Path) -> Result<Self, KeyError> {
        let wrong = |source| KeyError::Make { file: file.to_owned(), source };
        let mut bytes = [0; KEY_LEN];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).map_err(wrong)?;
        let mut text = String::new();
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        let opened = File::options().write(true).create_new(true).mode(0o600).open(file);
        let mut opened = opened.map_err(wrong)?;
        opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(wrong)?;
        Ok(Self(bytes))
    }

    /// Reads one.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { file: file.to_owned(), source };
        let opened = File::open(file).map_err(failed)?;
        let mode = opened.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { file: file.to_owned(), mode });
        }
        let mut text = Vec::new();
        opened.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(failed)?;
        Self::parse(text.trim_ascii()).ok_or_else(|| KeyError::Wrong { file: file.to_owned() })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let (pairs, rest) = text.as_chunks::<2>();
        let mut bytes = [0; KEY_LEN];
        if !rest.is_empty() || pairs.len() != KEY_LEN {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(bytes))
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        let made = Key::make(&file).expect("it is made");
        assert_eq!(fs::metadata(&file).expect("it is there").mode() & 0o777, 0o600);
        assert!(Key::read(&file).expect("it is one") == made);
        let again = Key::make(&file).expect_err("it is there already").to_string();
        assert!(again.contains("key cannot be made") && again.contains("exists"), "{again}");
        assert!(Key::make(&dir.path().join("other")).expect("it is made") != made);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_line_that_mends_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        Key::make(&file).expect("it is made");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("its mode");
            let said = Key::read(&file).expect_err("others can").to_string();
            assert!(said.contains(&format!("chmod 600 {}", file.display())), "{said}");
        }
    }

    #[test]
    fn what_is_no_key_says_so_and_never_what_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = Key::read(&dir.path().join("nowhere")).expect_err("it is not there");
        assert!(missing.to_string().contains("shadowvm agent key FILE"), "{missing}");
        for text in ["", "0123", &"zz".repeat(32), &"00".repeat(33), &"0".repeat(10_000)] {
            let file = dir.path().join("wrong");
            fs::write(&file, text).expect("a file");
            fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its mode");
            let said = Key::read(&file).expect_err(text).to_string();
            assert!(said.contains("64 hexadecimal digits"), "{said}");
        }
        assert_eq!(format!("{:?}", Key::new([7; KEY_LEN])), "Key");
    }
}
