//! The admin socket as a file: made for its owner only, and never taken from a living gateway.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another gateway answers there.
    #[error(
        "a gateway is running already: it answers on {}; stop it, or set another admin.socket",
        .0.display()
    )]
    Busy(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{} is not a socket; remove it, or set another admin.socket", .0.display())]
    NotASocket(PathBuf),
    /// It cannot be made.
    #[error(
        "cannot make the admin socket {}: {source}; its directory has to be writable \
         (admin.socket)",
        path.display()
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket, mode 0600, replacing one that nobody answers on. Its directory is made if
/// need be. Call it before other threads start: the umask belongs to the process.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let wrong = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(SocketError::Busy(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(wrong)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                fs::create_dir_all(dir).map_err(wrong)?;
            }
        }
        Err(error) => return Err(wrong(error)),
    }
    let before = umask(Mode::S_IRWXG | Mode::S_IRWXO | Mode::S_IXUSR);
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(wrong)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_owner_s_alone_and_replaces_only_a_dead_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/admin.sock");
        let first = bind(&path).expect("a socket");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path), Err(SocketError::Busy(_))));
        drop(first);
        bind(&path).expect("the dead one is replaced");
        let file = dir.path().join("file");
        fs::write(&file, "precious").expect("a file");
        assert!(matches!(bind(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&file).expect("a file"), "precious");
        let below = file.join("x.sock");
        assert!(matches!(bind(&below), Err(SocketError::Io { .. })));
    }
}
