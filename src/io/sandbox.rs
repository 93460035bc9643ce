//! The system calls that a running gateway makes, and none else: a seccomp filter (seccomp(2)).
//!
//! Whoever takes over this process through a frame or a request may then neither execute nor fork,
//! connect nor listen, create a file, trace a process, nor make memory executable. The kernel ends
//! the process at the first forbidden call (SIGSYS); the state file lets the next one continue.

use std::collections::BTreeMap;
use std::io;

use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Why the process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The list is not written for this processor.
    #[error("no list of system calls for this processor ({0})")]
    Filter(#[from] BackendError),
    /// The kernel refuses.
    #[error("the kernel refuses the filter ({0})")]
    Refused(#[from] seccompiler::Error),
    /// Dumps of memory cannot be turned off.
    #[error("core dumps cannot be turned off ({0})")]
    Limit(io::Error),
}

/// Confines the whole process, all threads, for good; and no dump of its memory, which holds the
/// clients' data, is written any more. Threads and descriptors that it takes to make stand by now.
pub fn enter() -> Result<(), SandboxError> {
    close_around(&program()?)
}

fn close_around(program: &BpfProgram) -> Result<(), SandboxError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| SandboxError::Limit(errno.into()))?;
    Ok(seccompiler::apply_filter_all_threads(program)?)
}

fn program() -> Result<BpfProgram, BackendError> {
    let rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALWAYS.iter().map(|&call| (call, Vec::new())).chain(checked()?).collect();
    let processor: TargetArch = std::env::consts::ARCH.try_into()?;
    let (other, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, other, listed, processor)?.try_into()
}

/// Allowed whatever their arguments are.
const ALWAYS: &[i64] = &[
    // The packet loop. With these two the kernel has nothing to look at but a bit a call.
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_ppoll,
    libc::SYS_sched_yield,
    // A link that has come back, and its counters.
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    // The admin thread.
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    // Files: what is open, the configuration again, the admin socket's name at the end, and what
    // the trace of a panic reads.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_getcwd,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Clocks that the kernel does not answer without a call.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Signals, and the helper's end.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    // Older names, which other processors never had.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Allowed with some arguments only.
fn checked() -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let not_executable = || all([(2, masked(libc::PROT_EXEC), 0)]);
    let mut ioctls = Vec::new();
    for request in IOCTLS {
        ioctls.push(all([(1, SeccompCmpOp::Eq, request)])?);
    }
    let kind = |domain: i32, kind: i32| {
        all([(0, SeccompCmpOp::Eq, of(domain)), (1, masked(SOCKET_KIND), of(kind))])
    };
    Ok(vec![
        // Reads and writes what is there; makes nothing.
        (libc::SYS_openat, vec![all([(2, masked(libc::O_CREAT | O_TMPFILE), 0)])?]),
        (libc::SYS_ioctl, ioctls),
        (
            libc::SYS_socket,
            vec![kind(libc::AF_PACKET, libc::SOCK_RAW)?, kind(libc::AF_INET, libc::SOCK_DGRAM)?],
        ),
        // To whom it is connected; no address.
        (libc::SYS_sendto, vec![all([(4, SeccompCmpOp::Eq, 0)])?]),
        (libc::SYS_mmap, vec![not_executable()?]),
        (libc::SYS_mprotect, vec![not_executable()?]),
        (libc::SYS_fcntl, {
            let command = |n: i32| all([(1, SeccompCmpOp::Eq, of(n))]);
            // A debug build asks for F_GETFD before it closes anything.
            vec![command(libc::F_DUPFD_CLOEXEC)?, command(libc::F_GETFL)?, command(libc::F_GETFD)?]
        }),
        (libc::SYS_prctl, vec![all([(0, SeccompCmpOp::Eq, of(libc::PR_SET_NAME))])?]),
        // A panic that cannot unwind ends this process and no other.
        (libc::SYS_tgkill, vec![all([(0, SeccompCmpOp::Eq, u64::from(std::process::id()))])?]),
    ])
}

/// What is asked and set of an interface (link_monitor.rs), and a socket that shall not block.
#[allow(clippy::unnecessary_cast)] // their type is each C library's own
const IOCTLS: [u64; 6] = [
    libc::SIOCGIFINDEX as u64,
    libc::SIOCGIFMTU as u64,
    libc::SIOCGIFHWADDR as u64,
    libc::SIOCGIFFLAGS as u64,
    libc::SIOCSIFFLAGS as u64,
    libc::FIONBIO as u64,
];

/// The part of a socket's type that is not a flag.
const SOCKET_KIND: i32 = 0xf;
/// The bit of its own that O_TMPFILE has besides O_DIRECTORY.
const O_TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// A rule of conditions that hold together: number of the argument, comparison, value. Arguments
/// are compared as 32 bits where the kernel takes an `int`, which all of them here are, save the
/// address of `sendto`.
fn all<const N: usize>(
    conditions: [(u8, SeccompCmpOp, u64); N],
) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.map(|(argument, comparison, value)| {
        let len = if argument == 4 { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        SeccompCondition::new(argument, len, comparison, value)
    });
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

fn masked(bits: i32) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(of(bits))
}

/// A constant that is not negative as the filter takes it.
fn of(constant: i32) -> u64 {
    u64::from(constant.cast_unsigned())
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// A call by its name; what it returns does not matter.
    type Call = (&'static str, fn());

    /// Makes a system call, whatever comes of it.
    fn make(call: libc::c_long, arguments: [libc::c_long; 6]) {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the calls below have no valid pointer to write to, or none at all.
        unsafe { libc::syscall(call, a, b, c, d, e, f) };
    }

    fn text(text: &'static std::ffi::CStr) -> libc::c_long {
        text.as_ptr() as libc::c_long
    }

    const MINUS_ONE: [libc::c_long; 6] = [-1; 6];
    const NOTHING: [libc::c_long; 6] = [0; 6];

    /// Harmless without the filter: the arguments are wrong, or nothing comes of it.
    const FORBIDDEN: &[Call] = &[
        ("execve", || make(libc::SYS_execve, [text(c"/"), 0, 0, 0, 0, 0])),
        ("execveat", || make(libc::SYS_execveat, MINUS_ONE)),
        ("clone", || make(libc::SYS_clone, [libc::CLONE_THREAD.into(), 0, 0, 0, 0, 0])),
        ("clone3", || make(libc::SYS_clone3, NOTHING)),
        ("ptrace", || make(libc::SYS_ptrace, MINUS_ONE)),
        ("process_vm_writev", || make(libc::SYS_process_vm_writev, MINUS_ONE)),
        ("kill", || make(libc::SYS_kill, [std::process::id().into(), 0, 0, 0, 0, 0])),
        ("tgkill of another", || make(libc::SYS_tgkill, [1, 1, 0, 0, 0, 0])),
        ("socket of TCP", || make(libc::SYS_socket, [2, 1, 0, 0, 0, 0])),
        ("socket of Unix", || make(libc::SYS_socket, [1, 1, 0, 0, 0, 0])),
        ("connect", || make(libc::SYS_connect, MINUS_ONE)),
        ("listen", || make(libc::SYS_listen, MINUS_ONE)),
        ("sendto an address", || make(libc::SYS_sendto, [-1, 0, 0, 0, 1 << 40, 16])),
        ("ioctl TIOCSTI", || make(libc::SYS_ioctl, [-1, libc::TIOCSTI as _, 0, 0, 0, 0])),
        ("openat that creates", || {
            let flags = libc::O_CREAT | libc::O_WRONLY;
            make(libc::SYS_openat, [-1, text(c"/nonexistent/x"), flags.into(), 0, 0, 0]);
        }),
        ("openat without a name", || {
            let flags = libc::O_TMPFILE | libc::O_WRONLY;
            make(libc::SYS_openat, [-1, text(c"/nonexistent"), flags.into(), 0, 0, 0]);
        }),
        ("mkdirat", || make(libc::SYS_mkdirat, [-1, text(c"/nonexistent/x"), 0, 0, 0, 0])),
        ("renameat2", || make(libc::SYS_renameat2, MINUS_ONE)),
        ("mmap of code", || {
            let (prot, flags) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            make(libc::SYS_mmap, [0, 4096, prot.into(), flags.into(), -1, 0]);
        }),
        ("mprotect to code", || {
            make(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC.into(), 0, 0, 0]);
        }),
        ("setresuid", || make(libc::SYS_setresuid, MINUS_ONE)),
        ("capset", || make(libc::SYS_capset, NOTHING)),
        ("unshare", || make(libc::SYS_unshare, NOTHING)),
        ("mount", || make(libc::SYS_mount, NOTHING)),
        ("bpf", || make(libc::SYS_bpf, MINUS_ONE)),
        ("io_uring_setup", || make(libc::SYS_io_uring_setup, NOTHING)),
        ("prctl but for a name", || {
            make(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into(), 0, 0, 0, 0, 0]);
        }),
    ];

    const ALLOWED: &[Call] = &[
        ("recvmmsg", || make(libc::SYS_recvmmsg, MINUS_ONE)),
        ("sendmmsg", || make(libc::SYS_sendmmsg, MINUS_ONE)),
        ("a packet socket", || {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            make(libc::SYS_socket, [libc::AF_PACKET.into(), kind.into(), 0, 0, 0, 0]);
        }),
        ("what an interface is", || assert!(super::super::link_monitor::interface("lo").is_some())),
        ("a file to read", || {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC;
            make(libc::SYS_openat, [-1, text(c"/nonexistent"), flags.into(), 0, 0, 0]);
        }),
        ("sendto without an address", || make(libc::SYS_sendto, [-1, 0, 0, 0, 0, 0])),
    ];

    /// How a process ends that makes `call`, within the filter if one is given.
    fn end_of(call: fn(), program: Option<&BpfProgram>) -> WaitStatus {
        // SAFETY: the child allocates nothing, and leaves by _exit.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Child => {
                let is_ready = program.is_none_or(|program| close_around(program).is_ok());
                call();
                // SAFETY: ends this process and runs nothing of its parent's.
                unsafe { libc::_exit(i32::from(!is_ready)) }
            }
            ForkResult::Parent { child } => waitpid(child, None).expect("it ends"),
        }
    }

    #[test]
    fn a_forbidden_call_ends_the_process() {
        let program = program().expect("this processor has a list");
        for (name, call) in FORBIDDEN {
            let ended = end_of(*call, None);
            assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{name}, unconfined: {ended:?}");
            let ended = end_of(*call, Some(&program));
            assert!(
                matches!(ended, WaitStatus::Signaled(_, Signal::SIGSYS, _)),
                "{name}: {ended:?}"
            );
        }
    }

    #[test]
    fn what_a_link_that_returns_needs_is_allowed() {
        let program = program().expect("this processor has a list");
        for (name, call) in ALLOWED {
            let ended = end_of(*call, Some(&program));
            assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{name}: {ended:?}");
        }
    }
}
