//! Which pages of a file another process writes, of a file that it has mapped: the kernel's own
//! notes (userfaultfd(2) with asynchronous write protection, and PAGEMAP_SCAN; Linux 6.7).
//!
//! Such notes begin within the process itself. So it is stopped for an instant (ptrace(2)), makes
//! one system call that it did not ask for, and goes on as if nothing had been; everything else is
//! done from here. The notes end with [`Written`], and with the process that has it.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The name of its own that the kernel's interface has (linux/userfaultfd.h).
const API: u64 = 0xaa;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;
const REGISTER_WP: u64 = 1 << 1;
/// No privilege is needed for one that never sees a fault of the kernel's.
const USER_MODE_ONLY: u64 = 1;

/// Protect again what is told (linux/fs.h).
const SCAN_WP_MATCHING: u64 = 1 << 0;
/// Refuse memory that is not registered.
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const IS_WRITTEN: u64 = 1 << 1;
/// Pieces that one call tells.
const PIECES_MAX: usize = 1024;

#[repr(C)]
#[derive(Debug, Default)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    start: u64,
    end: u64,
    categories: u64,
}

nix::ioctl_readwrite!(uffd_api, 0xaa, 0x3f, UffdApi);
nix::ioctl_readwrite!(uffd_register, 0xaa, 0x00, UffdRegister);
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

/// What of a file is written by a process.
#[derive(Debug)]
pub struct Written {
    /// Where the process has the file.
    place: Range<u64>,
    pagemap: File,
    /// While it is open the kernel takes notes.
    _uffd: OwnedFd,
}

impl Written {
    /// Begins to take notes of what `pid` writes of `file`, all of which it has mapped, once.
    pub fn of(pid: u32, file: &File) -> io::Result<Self> {
        let place = place_of(pid, file)?;
        let uffd = named("userfaultfd", inject::userfaultfd(pid))?;
        register(&uffd, &place)?;
        let pagemap = named("pagemap", File::open(format!("/proc/{pid}/pagemap")))?;
        Ok(Self { place, pagemap, _uffd: uffd })
    }

    /// What was written since the last call, in bytes from the file's beginning and in order; the
    /// first call tells of all that the process has in its page tables. What is told is a page at
    /// least, and from then on protected again, so nothing written meanwhile is lost.
    pub fn taken(&mut self) -> io::Result<Vec<Range<u64>>> {
        let mut pieces = vec![Piece::default(); PIECES_MAX];
        let mut found = Vec::new();
        let mut start = self.place.start;
        while start < self.place.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                start,
                end: self.place.end,
                vec: pieces.as_mut_ptr() as u64,
                vec_len: PIECES_MAX as u64,
                category_mask: IS_WRITTEN,
                return_mask: IS_WRITTEN,
                ..ScanArg::default()
            };
            // SAFETY: `arg` is what this call reads and writes, and `vec` has room for `vec_len`.
            let count = unsafe { pagemap_scan(self.pagemap.as_raw_fd(), &raw mut arg) };
            let count = usize::try_from(named("PAGEMAP_SCAN", count.map_err(io::Error::from))?);
            let told = pieces.iter().take(count.unwrap_or(0));
            found.extend(told.map(|p| p.start - self.place.start..p.end - self.place.start));
            if arg.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN does not get any further"));
            }
            start = arg.walk_end;
        }
        Ok(found)
    }
}

/// Whether this kernel takes such notes; tried with memory of this process.
pub fn probe() -> io::Result<()> {
    let name = c"shadowvm-probe";
    let file = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let file = File::from(file);
    file.set_len(PAGE)?;
    let map = Map::new(&file)?;
    // SAFETY: it makes a descriptor and touches no memory.
    let uffd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    let uffd = named("userfaultfd", of_call(uffd))?;
    // SAFETY: the descriptor was just made and has no other owner.
    let uffd = unsafe { std::os::fd::FromRawFd::from_raw_fd(uffd) };
    let start = map.start as u64;
    let place = start..start + PAGE;
    register(&uffd, &place)?;
    let pagemap = File::open("/proc/self/pagemap")?;
    Written { place, pagemap, _uffd: uffd }.taken().map(drop)
}

const PAGE: u64 = 4096;

/// A page of a file, mapped here.
struct Map {
    start: *mut libc::c_void,
}

impl Map {
    fn new(file: &File) -> io::Result<Self> {
        let (len, both) = (PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
        let nowhere = std::ptr::null_mut();
        // SAFETY: a new mapping where the kernel likes; nobody reads it.
        let start =
            unsafe { libc::mmap(nowhere, len, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        match start == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(Self { start }),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it is the mapping made above, and nobody has a reference into it.
        unsafe { libc::munmap(self.start, PAGE as usize) };
    }
}

fn register(uffd: &OwnedFd, place: &Range<u64>) -> io::Result<()> {
    let features = WP_ASYNC | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED;
    let mut api = UffdApi { api: API, features, ioctls: 0 };
    // SAFETY: it is what this call reads and writes.
    let agreed = unsafe { uffd_api(uffd.as_raw_fd(), &raw mut api) };
    named("asynchronous write protection (Linux 6.7)", agreed.map_err(io::Error::from))?;
    let (start, len) = (place.start, place.end - place.start);
    let mut register = UffdRegister { start, len, mode: REGISTER_WP, ioctls: 0 };
    // SAFETY: it is what this call reads and writes; protection of this kind changes no content.
    let registered = unsafe { uffd_register(uffd.as_raw_fd(), &raw mut register) };
    named("write protection of a file's pages", registered.map_err(io::Error::from)).map(drop)
}

fn named<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn of_call(returned: i64) -> io::Result<i32> {
    match i32::try_from(returned) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the process has the whole of the file.
fn place_of(pid: u32, file: &File) -> io::Result<Range<u64>> {
    let meta = file.metadata()?;
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let (device, inode) = (format!("{major:02x}:{minor:02x}"), meta.ino().to_string());
    let maps = named("the map of its memory", fs::read_to_string(format!("/proc/{pid}/maps")))?;
    let found = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (place, rights, offset) = (words.next()?, words.next()?, words.next()?);
        let is_it = words.next()? == device && words.next()? == inode;
        (is_it && rights.starts_with("rw") && rights.ends_with('s')).then_some((place, offset))
    });
    let places: Vec<_> = found.collect();
    let [(place, offset)] = places[..] else {
        let why = format!("the file is mapped in {} pieces, not as one", places.len());
        return Err(io::Error::other(why));
    };
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let place = place.split_once('-').and_then(|(from, to)| Some(number(from)?..number(to)?));
    let is_whole = |place: &Range<u64>| place.end - place.start == meta.len();
    let place = place.filter(|place| number(offset) == Some(0) && is_whole(place));
    place.ok_or_else(|| io::Error::other("the file is not mapped as a whole"))
}

/// One system call in the name of another process.
#[cfg(target_arch = "x86_64")]
mod inject {
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::fs::FileExt;

    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::{USER_MODE_ONLY, named, of_call};

    /// `syscall`.
    const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
    /// What a call that a stop has interrupted seems to return (linux/errno.h): it is made again,
    /// as it was or as restart_syscall(2).
    const AGAIN: [i64; 3] = [-512, -513, -514];
    const AGAIN_BLOCK: i64 = -516;
    /// No system call to be made again.
    const NO_CALL: u64 = u64::MAX;

    /// A descriptor for the memory of `pid`, which keeps none itself.
    pub(super) fn userfaultfd(pid: u32) -> io::Result<OwnedFd> {
        let stopped = Stopped::stop(pid)?;
        let flags = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | USER_MODE_ONLY;
        let theirs = stopped.call(libc::SYS_userfaultfd, flags)?;
        let ours = take(pid, theirs);
        stopped.call(libc::SYS_close, theirs)?;
        ours
    }

    /// Another process's descriptor as one of ours.
    fn take(pid: u32, theirs: u64) -> io::Result<OwnedFd> {
        // SAFETY: it makes a descriptor and touches no memory.
        let process = of_call(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the descriptor was just made and has no other owner.
        let process = unsafe { OwnedFd::from_raw_fd(process) };
        // SAFETY: it makes a descriptor and touches no memory.
        let ours = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), theirs, 0) };
        let ours = named("pidfd_getfd", of_call(ours))?;
        // SAFETY: the descriptor was just made and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(ours) })
    }

    /// A process whose first thread stands still; it goes on as it was when this is dropped.
    struct Stopped {
        pid: Pid,
        before: libc::user_regs_struct,
        /// Where there is a `syscall`.
        instruction: u64,
    }

    impl Stopped {
        fn stop(pid: u32) -> io::Result<Self> {
            let instruction = find_instruction(pid)?;
            let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
            named("ptrace", ptrace(libc::PTRACE_SEIZE, pid, 0))?;
            // SAFETY: all zeroes is a value of this plain structure.
            let before = unsafe { std::mem::zeroed() };
            let mut stopped = Self { pid, before, instruction };
            ptrace(libc::PTRACE_INTERRUPT, pid, 0)?;
            stopped.wait()?;
            stopped.before = as_if_not_interrupted(stopped.registers()?);
            Ok(stopped)
        }

        /// Waits until it stands still.
        fn wait(&self) -> io::Result<WaitStatus> {
            loop {
                match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                    Err(nix::errno::Errno::EINTR) => {}
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                        return Err(io::Error::other("the process has ended"));
                    }
                    status => return status.map_err(io::Error::from),
                }
            }
        }

        fn registers(&self) -> io::Result<libc::user_regs_struct> {
            // SAFETY: all zeroes is a value of this plain structure.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            ptrace(libc::PTRACE_GETREGS, self.pid, &raw mut registers as usize)?;
            Ok(registers)
        }

        fn set(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
            ptrace(libc::PTRACE_SETREGS, self.pid, &raw const *registers as usize)
        }

        /// Has it make a system call with one argument; what that returns.
        fn call(&self, number: i64, argument: u64) -> io::Result<u64> {
            let mut registers = self.before;
            registers.rip = self.instruction;
            registers.rax = number.cast_unsigned();
            registers.rdi = argument;
            registers.orig_rax = NO_CALL;
            self.set(&registers)?;
            let mut signals = Vec::new();
            let done = loop {
                ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0)?;
                // A signal of its own may come first: it gets that later.
                match self.wait()? {
                    WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => {
                        signals.push(signal);
                    }
                    _ => {}
                }
                let now = self.registers()?;
                if now.rip != self.instruction {
                    break now;
                }
            };
            for signal in signals {
                let (pid, signal) = (self.pid.as_raw(), signal as i32);
                // SAFETY: it sends a signal, the one that it was about to get.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, signal) };
            }
            match done.rax.cast_signed() {
                error @ -4095..=-1 => {
                    let errno = i32::try_from(-error).unwrap_or(libc::EIO);
                    Err(io::Error::from_raw_os_error(errno))
                }
                _ => Ok(done.rax),
            }
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            if self.before.rip != 0 {
                let before = self.before;
                let _ = self.set(&before);
            }
            // One that has ended needs nothing.
            let _ = ptrace(libc::PTRACE_DETACH, self.pid, 0);
        }
    }

    /// The registers of a thread that makes the call again that it was in, as the kernel has it do
    /// when nobody meddles.
    fn as_if_not_interrupted(mut registers: libc::user_regs_struct) -> libc::user_regs_struct {
        let is_in_call = registers.orig_rax.cast_signed() >= 0;
        let number = match registers.rax.cast_signed() {
            code if is_in_call && AGAIN.contains(&code) => registers.orig_rax,
            AGAIN_BLOCK if is_in_call => libc::SYS_restart_syscall.cast_unsigned(),
            _ => return registers,
        };
        registers.rax = number;
        registers.rip -= INSTRUCTION.len() as u64;
        registers.orig_rax = NO_CALL;
        registers
    }

    /// A system call in code that every process has, so that none of its own is changed.
    fn find_instruction(pid: u32) -> io::Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"));
        let place = line.and_then(|line| line.split_ascii_whitespace().next()?.split_once('-'));
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let place = place.and_then(|(from, to)| Some((number(from)?, number(to)?)));
        let (from, to) = place.ok_or_else(|| io::Error::other("the process has no vdso"))?;
        let mut code = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
        let memory = named("ptrace", File::open(format!("/proc/{pid}/mem")))?;
        memory.read_exact_at(&mut code, from)?;
        let at = code.windows(2).position(|window| window == INSTRUCTION);
        at.map(|at| from + at as u64).ok_or_else(|| io::Error::other("the vdso makes no call"))
    }

    fn ptrace(request: libc::c_uint, pid: Pid, data: usize) -> io::Result<()> {
        // SAFETY: `data` is 0, or the address of registers that live longer than this call.
        match unsafe { libc::ptrace(request, pid.as_raw(), 0_usize, data) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Registers have other names elsewhere.
#[cfg(not(target_arch = "x86_64"))]
mod inject {
    use std::io;
    use std::os::fd::OwnedFd;

    pub(super) fn userfaultfd(_pid: u32) -> io::Result<OwnedFd> {
        let what = "this program can ask for it on x86-64 only";
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    const PAGES: u64 = 700;

    /// A process with a file in its memory, of which it writes the pages that it is told.
    struct Writer {
        pid: libc::pid_t,
        file: File,
        stream: UnixStream,
    }

    impl Writer {
        fn new() -> Self {
            let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
            let file = nix::sys::memfd::memfd_create(c"memory", flags).expect("a file");
            let file = File::from(file);
            file.set_len(PAGES * PAGE).expect("room");
            let (stream, theirs) = UnixStream::pair().expect("a socket pair");
            let (len, both) = ((PAGES * PAGE) as usize, libc::PROT_READ | libc::PROT_WRITE);
            let (shared, fd) = (libc::MAP_SHARED, file.as_raw_fd());
            // SAFETY: a new mapping where the kernel likes.
            let map = unsafe { libc::mmap(std::ptr::null_mut(), len, both, shared, fd, 0) };
            assert_ne!(map, libc::MAP_FAILED);
            // SAFETY: the child makes system calls only, and ends in `write_pages`.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                write_pages(theirs.as_fd(), map.cast());
            }
            // SAFETY: the mapping made above; what the child has is its own.
            unsafe { libc::munmap(map, len) };
            Self { pid, file, stream }
        }

        fn write(&mut self, pages: &[u16]) {
            for page in pages {
                self.stream.write_all(&page.to_ne_bytes()).expect("it lives");
                let mut done = [0; 2];
                self.stream.read_exact(&mut done).expect("it lives");
                assert_eq!(u16::from_ne_bytes(done), *page);
            }
        }
    }

    impl Drop for Writer {
        fn drop(&mut self) {
            // SAFETY: the child that was made above, and that nobody else waits for.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }

    /// The child's whole life. It waits with a limit of time, so that a stop interrupts a call
    /// which is not simply made again.
    fn write_pages(stream: BorrowedFd<'_>, map: *mut u8) -> ! {
        let fd = stream.as_raw_fd();
        let mut wait = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut page = [0_u8; 2];
        // SAFETY: calls with buffers of this stack, and writes within the mapping.
        unsafe {
            loop {
                let came = libc::poll(&raw mut wait, 1, 60_000) == 1
                    && libc::read(fd, page.as_mut_ptr().cast(), 2) == 2;
                if !came {
                    libc::_exit(1);
                }
                let at = usize::from(u16::from_ne_bytes(page)) * PAGE as usize;
                let byte = map.add(at);
                byte.write_volatile(byte.read_volatile().wrapping_add(1));
                libc::write(fd, page.as_ptr().cast(), 2);
            }
        }
    }

    fn pages(written: &[Range<u64>]) -> Vec<u64> {
        written.iter().flat_map(|piece| piece.start / PAGE..piece.end / PAGE).collect()
    }

    #[test]
    fn each_page_that_another_process_writes_is_told_once() {
        let mut writer = Writer::new();
        writer.write(&[1, 2]);
        let pid = writer.pid.unsigned_abs();
        let begun = Written::of(pid, &writer.file);
        if let Err(error) = probe() {
            // Here it is compared instead; that it does not work has to be told.
            let begun = begun.expect_err("the kernel has no such notes");
            eprintln!("this kernel takes no notes: {error}; {begun}");
            return;
        }
        let mut written = begun.expect("the kernel takes notes");
        let first = pages(&written.taken().expect("notes"));
        assert!(first.contains(&1) && first.contains(&2), "{first:?}");
        assert!(written.taken().expect("notes").is_empty());
        writer.write(&[3, 1, 699, 300, 301, 3]);
        assert_eq!(pages(&written.taken().expect("notes")), [1, 3, 300, 301, 699]);
        assert!(written.taken().expect("notes").is_empty());
        writer.write(&[3]);
        assert_eq!(pages(&written.taken().expect("notes")), [3]);
        // Many more than one call tells, none next to another.
        let even: Vec<u16> = (0..350).map(|n| n * 2).collect();
        writer.write(&even);
        let want: Vec<u64> = even.iter().map(|n| u64::from(*n)).collect();
        assert_eq!(pages(&written.taken().expect("notes")), want);
        // It keeps no descriptor, and another one may take notes after these.
        drop(written);
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten();
        let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        assert!(!open.into_iter().any(|path| path.to_string_lossy().contains("userfaultfd")));
        let mut again = Written::of(pid, &writer.file).expect("the kernel takes notes");
        again.taken().expect("notes");
        writer.write(&[5]);
        assert_eq!(pages(&again.taken().expect("notes")), [5]);
    }

    #[test]
    fn a_file_that_is_not_mapped_is_refused_and_a_process_that_has_ended_too() {
        let writer = Writer::new();
        let other = tempfile::tempfile().expect("a file");
        let pid = writer.pid.unsigned_abs();
        let error = Written::of(pid, &other).expect_err("another file");
        assert!(error.to_string().contains("0 pieces"), "{error}");
        let file = writer.file.try_clone().expect("a file");
        drop(writer);
        Written::of(pid, &file).expect_err("it has ended");
    }
}
