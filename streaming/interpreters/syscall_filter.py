"""The seccomp filter: the architecture's system-call numbers in, a classic-BPF program out.

Default deny. A list of what plain computing, files and threads need is allowed; what an attacker
would try first is refused with EPERM, so that the model reads "Operation not permitted"; anything
else, known or invented after this file, gets ENOSYS, which is what libraries fall back on. A deny
list would have to be right about every kernel to come; this one errs on the closed side.

Numbers are those of Linux's asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import errno
import platform
import struct
from collections.abc import Iterable
from functools import cache

# name, number on x86_64, number on aarch64 ("-": the architecture has no such call)
_ALLOWED = """
read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68; preadv 295 69;
pwritev 296 70; preadv2 327 286; pwritev2 328 287; close 3 57; close_range 436 436; lseek 8 62;
dup 32 23; dup2 33 -; dup3 292 24; pipe 22 -; pipe2 293 59; poll 7 -; ppoll 271 73; select 23 -;
pselect6 270 72; epoll_create 213 -; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -;
epoll_pwait 281 22; eventfd2 290 19; open 2 -; openat 257 56; creat 85 -; stat 4 -; fstat 5 80;
lstat 6 -; newfstatat 262 79; statx 332 291; access 21 -; faccessat 269 48; faccessat2 439 439;
readlink 89 -; readlinkat 267 78; getcwd 79 17; chdir 80 49; fchdir 81 50; getdents 78 -;
getdents64 217 61; mkdir 83 -; mkdirat 258 34; rmdir 84 -; unlink 87 -; unlinkat 263 35;
rename 82 -; renameat 264 38; renameat2 316 276; link 86 -; linkat 265 37; symlink 88 -;
symlinkat 266 36; truncate 76 45; ftruncate 77 46; fallocate 285 47; fadvise64 221 223;
fsync 74 82; fdatasync 75 83; flock 73 32; umask 95 166; statfs 137 43; fstatfs 138 44;
sendfile 40 71; copy_file_range 326 285; getxattr 191 8; lgetxattr 192 9; fgetxattr 193 10;
listxattr 194 11; llistxattr 195 12; flistxattr 196 13; mmap 9 222; munmap 11 215;
mprotect 10 226; mremap 25 216; madvise 28 233; msync 26 227; mincore 27 232; brk 12 214;
futex 202 98; set_robust_list 273 99; rseq 334 293; set_tid_address 218 96; gettid 186 178;
getpid 39 172; getppid 110 173; getuid 102 174; geteuid 107 175; getgid 104 176;
getegid 108 177; getresuid 118 148; getresgid 120 150; getgroups 115 158; getpgrp 111 -;
getpgid 121 155; getsid 124 156; getpriority 140 141; sched_yield 24 124;
sched_getaffinity 204 123; sched_getparam 143 121; sched_getscheduler 145 120;
sched_get_priority_max 146 125; sched_get_priority_min 147 126; getcpu 309 168;
rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigpending 127 136;
rt_sigtimedwait 128 137; rt_sigsuspend 130 133; sigaltstack 131 132; pause 34 -; alarm 37 -;
setitimer 38 103; getitimer 36 102; nanosleep 35 101; clock_nanosleep 230 115;
clock_gettime 228 113; clock_getres 229 114; gettimeofday 96 169; time 201 -; times 100 153;
getrusage 98 165; getrlimit 97 163; sysinfo 99 179; uname 63 160; getrandom 318 278;
arch_prctl 158 -; restart_syscall 219 128; exit 60 93; exit_group 231 94; capget 125 90
"""

_REFUSED = """
execve 59 221; execveat 322 281; fork 57 -; vfork 58 -; socket 41 198; socketpair 53 199;
connect 42 203; bind 49 200; listen 50 201; accept 43 202; accept4 288 242; sendto 44 206;
sendmsg 46 211; sendmmsg 307 269; recvfrom 45 207; recvmsg 47 212; recvmmsg 299 243;
shutdown 48 210; setsockopt 54 208; getsockopt 55 209; getsockname 51 204; getpeername 52 205;
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; kcmp 312 272;
pidfd_open 434 434; pidfd_getfd 438 438; pidfd_send_signal 424 424; tkill 200 130;
rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240; mount 165 40; umount2 166 39;
pivot_root 155 41; chroot 161 51; unshare 272 97; setns 308 268; open_tree 428 428;
move_mount 429 429; fsopen 430 430; fsmount 432 432; fspick 433 433; fsconfig 431 431;
mount_setattr 442 442; bpf 321 280; perf_event_open 298 241; userfaultfd 323 282;
io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427; keyctl 250 219;
add_key 248 217; request_key 249 218; memfd_create 319 279; memfd_secret 447 447; chmod 90 -;
fchmod 91 52; fchmodat 268 53; chown 92 -; fchown 93 55; lchown 94 -; fchownat 260 54;
setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15;
fremovexattr 199 16; utime 132 -; utimes 235 -; utimensat 280 88; futimesat 261 -; mknod 133 -;
mknodat 259 33; setuid 105 146; setgid 106 144; setreuid 113 145; setregid 114 143;
setresuid 117 147; setresgid 119 149; setgroups 116 159; setfsuid 122 151; setfsgid 123 152;
capset 126 91; setpgid 109 154; setsid 112 157; setpriority 141 140; sched_setscheduler 144 119;
sched_setparam 142 118; sched_setattr 314 274; sched_setaffinity 203 122; setrlimit 160 164;
personality 135 92; seccomp 317 277; init_module 175 105; finit_module 313 273;
delete_module 176 106; kexec_load 246 104; reboot 169 142; swapon 167 224; swapoff 168 225;
sethostname 170 161; setdomainname 171 162; settimeofday 164 170; clock_settime 227 112;
adjtimex 159 171; clock_adjtime 305 266; quotactl 179 60; acct 163 89; syslog 103 116;
shmget 29 194; shmat 30 196; msgget 68 186; semget 64 190; mq_open 240 180;
open_by_handle_at 304 265; name_to_handle_at 303 264; inotify_init 253 -; inotify_init1 294 26;
fanotify_init 300 262; ioperm 173 -; iopl 172 -; modify_ldt 154 -; process_madvise 440 440;
landlock_create_ruleset 444 444; landlock_add_rule 445 445; landlock_restrict_self 446 446;
sync 162 81; syncfs 306 267
"""

# Calls whose arguments decide: see _conditional().
_CONDITIONAL = """
clone 56 220; clone3 435 435; kill 62 129; tgkill 234 131; ioctl 16 29; fcntl 72 25;
prctl 157 167; prlimit64 302 261
"""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_CLONE_THREAD = 0x00010000
# TCGETS (isatty asks), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, locks, F_DUPFD_CLOEXEC. F_SETOWN and F_SETSIG are
# absent on purpose: with them a process has the kernel signal any process of the same user.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
# PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE. PR_SET_PDEATHSIG must stay refused: a jail that
# cleared it would outlive the server.
_PRCTLS = (15, 16, 3)

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_RETURN_ALLOW, _RETURN_ERRNO, _RETURN_KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets in struct seccomp_data; both architectures are little-endian, so a low word comes first.
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16

_Instruction = tuple[int, int, int, int]
_ALLOW: _Instruction = (_RETURN, 0, 0, _RETURN_ALLOW)


def _refuse(code: int) -> _Instruction:
    return (_RETURN, 0, 0, _RETURN_ERRNO | code)


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = (row.split() for row in table.replace("\n", " ").split(";"))
    return {name: int(found[column]) for name, *found in rows if found[column] != "-"}


def _one_of(argument: int, values: tuple[int, ...], otherwise: int) -> list[_Instruction]:
    """Allow the call when the low word of an argument is one of `values`."""
    size = len(values)
    tests = [(_JUMP_EQUAL, size - index, 0, value) for index, value in enumerate(values)]
    load = (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * argument)
    return [load, *tests, _refuse(otherwise), _ALLOW]


def _conditional(own_pid: int) -> dict[str, list[_Instruction]]:
    threads_only = [
        (_LOAD, 0, 0, _OFFSET_ARGUMENTS),
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        _refuse(errno.EPERM),
        _ALLOW,
    ]
    return {
        "clone": threads_only,
        # Its flags lie in memory, where a filter cannot look; libc then falls back to clone.
        "clone3": [_refuse(errno.ENOSYS)],
        "kill": _one_of(0, (own_pid,), errno.EPERM),
        "tgkill": _one_of(0, (own_pid,), errno.EPERM),
        "ioctl": _one_of(1, _IOCTLS, errno.ENOTTY),
        "fcntl": _one_of(1, _FCNTLS, errno.EPERM),
        "prctl": _one_of(0, _PRCTLS, errno.EPERM),
        "prlimit64": _one_of(0, (0, own_pid), errno.EPERM),
    }


def _assemble(program: Iterable[_Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@cache
def _fixed_rules(machine: str) -> tuple[bytes, dict[str, int]]:
    """What is the same for every process, and the numbers of the calls whose rules are not."""
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}")
    column, audit_architecture = _ARCHITECTURES[machine]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, audit_architecture),
        (_RETURN, 0, 0, _RETURN_KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    for number in _numbers(_ALLOWED, column).values():
        program += [(_JUMP_EQUAL, 0, 1, number), _ALLOW]
    for number in _numbers(_REFUSED, column).values():
        program += [(_JUMP_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    return _assemble(program), _numbers(_CONDITIONAL, column)


def make_filter(own_pid: int) -> bytes:
    """Return the program as an array of struct sock_filter, for the process `own_pid`.

    Raises OSError(ENOSYS) on an architecture whose table is missing here. Its first call costs ten times a later one's.
    """
    fixed, numbers = _fixed_rules(platform.machine())
    conditional = _conditional(own_pid)
    program: list[_Instruction] = []
    for name, number in numbers.items():
        program += [(_JUMP_EQUAL, 0, len(conditional[name]), number), *conditional[name]]
    return fixed + _assemble([*program, _refuse(errno.ENOSYS)])
