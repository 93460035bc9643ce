//! The servers beside nginx, as Debian has them, but for who may do what, and where.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, Io, Program};

use super::bed::{Bed, until};
use super::content::{bytes, write_dated};

const START_MAX: Duration = Duration::from_secs(15);
/// Length of the file `data` of an FTP server.
pub const FILE_BYTES: usize = 24 << 20;

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// FTP: anonymous users, who may store files in `put`.
    Vsftpd,
    /// The same.
    Proftpd,
    /// HTTP: the known content, without an end to keep-alive.
    Apache,
}

impl Daemon {
    /// Starts it in a server of the bed; returns when it listens.
    pub fn start(self, bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
        self.start_with(bed, leg, FILE_BYTES)
    }

    /// The same with another length of that file.
    pub fn start_with(self, bed: &Bed<'_>, leg: LegId, len: usize) -> Result<(), String> {
        let own = bed.own(leg);
        let error = |e: io::Error| format!("{self:?}: {e}");
        fs::create_dir_all(own.join("empty")).map_err(error)?;
        let root = match self {
            Self::Apache => bed.content.root(leg),
            Self::Vsftpd | Self::Proftpd => self.files(&own.join("ftp"), len)?,
        };
        let conf = own.join("daemon.conf");
        let text = self.conf().replace("ROOT", &root.display().to_string());
        let text = text.replace("OWN", &own.display().to_string());
        fs::write(&conf, text).map_err(error)?;
        let program = match self {
            Self::Vsftpd => Program::new("vsftpd"),
            Self::Proftpd => Program::new("proftpd").args(["-n", "-q", "-c"]),
            Self::Apache => Program::new("apache2").args(["-D", "FOREGROUND", "-f"]),
        };
        let program = program.arg(&conf).stdout(Io::Null).stderr(Io::Null);
        let mut child = bed.spawn(HostId::Server(leg), program)?;
        until(START_MAX, "a server to listen", || match child.try_wait() {
            Ok(Some(status)) => Some(Err(format!("{self:?} of {leg:?} ended: {status}"))),
            _ => self.listens(bed, leg).then_some(Ok(())),
        })?
    }

    /// What an FTP server has.
    fn files(self, root: &Path, len: usize) -> Result<std::path::PathBuf, String> {
        let error = |e: io::Error| format!("{self:?}: {e}");
        fs::create_dir_all(root.join("put")).map_err(error)?;
        let user = nix::unistd::User::from_name("www-data").ok().flatten();
        let user = user.ok_or("no user called www-data")?;
        let (user, group) = (user.uid.as_raw(), user.gid.as_raw());
        chown(root.join("put"), Some(user), Some(group)).map_err(error)?;
        write_dated(&root.join("data"), &bytes(77, len)).map_err(error)?;
        Ok(root.to_owned())
    }

    /// Whether a program of `leg`'s server listens at its port.
    fn listens(self, bed: &Bed<'_>, leg: LegId) -> bool {
        let port = match self {
            Self::Vsftpd | Self::Proftpd => ":0015",
            Self::Apache => ":0050",
        };
        let read = || fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
        let sockets = bed.world.enter(HostId::Server(leg), read).unwrap_or_default();
        sockets.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[1].ends_with(port) && fields[3] == "0A"
        })
    }

    fn conf(self) -> &'static str {
        match self {
            Self::Vsftpd => VSFTPD,
            Self::Proftpd => PROFTPD,
            Self::Apache => APACHE,
        }
    }
}

const VSFTPD: &str = "listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root=ROOT
write_enable=YES
anon_upload_enable=YES
anon_umask=022
local_enable=NO
dirmessage_enable=YES
use_localtime=YES
xferlog_enable=NO
connect_from_port_20=YES
ftp_username=www-data
secure_chroot_dir=OWN/empty
";

const PROFTPD: &str = "ServerName \"Debian\"
ServerType standalone
UseIPv6 on
UseReverseDNS off
Port 21
Umask 022
User www-data
Group www-data
RequireValidShell off
TransferLog none
WtmpLog off
ControlsEngine off
DelayEngine off
PidFile OWN/proftpd.pid
ScoreboardFile OWN/proftpd.scoreboard
SystemLog OWN/proftpd.log
<Anonymous ROOT>
  User www-data
  Group www-data
  UserAlias anonymous www-data
  UserAlias ftp www-data
  AllowStoreRestart on
</Anonymous>
";

const APACHE: &str = "LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
TypesConfig /etc/mime.types
ServerName service
Listen 80
User www-data
Group www-data
PidFile OWN/apache.pid
ErrorLog OWN/apache.log
KeepAlive On
KeepAliveTimeout 3600
MaxKeepAliveRequests 0
DocumentRoot ROOT
<Directory />
  Require all granted
</Directory>
";
