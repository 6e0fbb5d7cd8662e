/* crucible-init: PID 1 of every sandbox.
 *
 * Takes one program as framed bytes on fd 0, starts it as an unprivileged process, reports on fd 3 how it ended, kills and
 * reaps what is left, and exits. It never writes to the program's stdout and stderr. The program cannot reach the init:
 * another uid, no capability, no shared descriptor. See protocol.h for the bytes, and for `crucible-init multiplexed`.
 */
#include "left.h"
#include <asm/poll.h>
#include <asm/statfs.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/inotify.h>
#include <linux/memfd.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signalfd.h>
#include <linux/time_types.h>
#include <linux/wait.h>

#define SIGKILL 9
#define SIGCHLD 17
#define SIGSET_BYTES 8
#define CHILD_MASK (1UL << (SIGCHLD - 1))
#define LEFT_AT "/workspace/out"

static u8 buffer[65536]; /* what was read of fd 0 and not used yet */
static u64 buffer_start, buffer_end;
static char strings[MAX_STRING_BYTES]; /* argv and environment, each with its NUL */
static char *vectors[MAX_STRINGS + 2];
static char path[MAX_PATH + 1];

static struct frame_head head;
static char **argv, **environment;

static int told_to_end;
static int multiplexed;
static int stdout_fd = STDOUT_FD, stderr_fd = STDERR_FD; /* what becomes the program's 1 and 2 */
static int output_ends[2] = {-1, -1};                    /* multiplexed: where its output is read, stdout first */

static char held_name[MAX_NAME + 1]; /* of the file that an interpreter waits for, and the FIFO in its place */
static int held_fifo = -1;
static int held_watch = -1; /* tells that the interpreter has opened the FIFO */

static void report(u32 kind, u32 a, u32 b);

static __attribute__((noreturn)) void refuse(enum stage stage, long error)
{
    report(REFUSED, stage, (u32)(error < 0 ? -error : error));
    die(1);
}

/* --- reading the frame: every length is checked before it is used --- */

static void fill(void)
{
    long got = SYS(read, CONTROL_FD, buffer, sizeof buffer);
    if (got == -EINTR)
        return;
    if (got <= 0)
        die(0); /* nobody wants this sandbox any more */
    buffer_start = 0;
    buffer_end = (u64)got;
}

static void take(void *to, u64 length)
{
    while (length) {
        u64 have = buffer_end - buffer_start;
        if (!have) {
            fill();
            continue;
        }
        if (have > length)
            have = length;
        memcpy(to, buffer + buffer_start, have);
        buffer_start += have;
        to = (u8 *)to + have;
        length -= have;
    }
}

/* Passes `length` bytes of the frame on to a file. */
static void take_into(int fd, u64 length, enum stage stage)
{
    while (length) {
        u64 have = buffer_end - buffer_start;
        long put;
        if (!have) {
            fill();
            continue;
        }
        if (have > length)
            have = length;
        put = SYS(write, fd, buffer + buffer_start, have);
        if (put == -EINTR)
            continue;
        if (put <= 0)
            refuse(stage, put ? put : -ENOSPC);
        buffer_start += (u64)put;
        length -= (u64)put;
    }
}

static u64 take_u32(void)
{
    u32 value;
    take(&value, sizeof value);
    return value;
}

static u64 take_content_length(void)
{
    u64 value;
    take(&value, sizeof value);
    if (value > MAX_CONTENT)
        refuse(AT_FRAME, EFBIG);
    return value;
}

static void take_string(char *to, u64 room)
{
    u64 length = take_u32();
    if (length >= room)
        refuse(AT_FRAME, E2BIG);
    take(to, length);
    to[length] = 0;
    if (text_length(to) != length)
        refuse(AT_FRAME, EINVAL); /* a NUL inside */
}

static void take_strings(void)
{
    u64 used = 0, index = 0, total = (u64)head.argc + head.envc;
    char **slot = vectors;
    if (!head.argc || total > MAX_STRINGS)
        refuse(AT_FRAME, E2BIG);
    memset(vectors, 0, sizeof vectors);
    argv = slot;
    for (; index < total; index++) {
        if (index == head.argc)
            slot++; /* the NULL that ends argv */
        take_string(strings + used, sizeof strings - used);
        *slot++ = strings + used;
        used += text_length(strings + used) + 1;
    }
    environment = vectors + head.argc + 1;
}

/* --- the program's files, written as the program's own user: no capability over foreign files is needed --- */

static void become(u32 id)
{
    long error = id ? SYS(setresgid, -1, id, -1) : SYS(setresuid, -1, id, -1);
    if (!error)
        error = id ? SYS(setresuid, -1, id, -1) : SYS(setresgid, -1, id, -1);
    if (error)
        refuse(AT_FILES, error);
}

/* Opens the folder that holds `path` (made where missing) and points `name` at the last component. */
static int open_parent(int workspace, char **name)
{
    char *component = path, *at = path;
    int folder = workspace;
    if (!path[0])
        refuse(AT_FILES, EINVAL);
    for (;; at++) {
        u64 length = (u64)(at - component);
        int last = !*at;
        long next;
        if (*at && *at != '/')
            continue;
        if (!length || length > MAX_NAME || (component[0] == '.' && (length == 1 || (length == 2 && component[1] == '.'))))
            refuse(AT_FILES, EINVAL);
        if (last)
            break;
        *at = 0;
        next = SYS(mkdirat, folder, component, 0755);
        if (next && next != -EEXIST)
            refuse(AT_FILES, next);
        next = SYS(openat, folder, component, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0)
            refuse(AT_FILES, next);
        if (folder != workspace)
            SYS(close, folder);
        folder = (int)next;
        component = at + 1;
    }
    *name = component;
    return folder;
}

static void open_output(int index, int *program_end)
{
    int ends[2];
    long error = SYS(pipe2, ends, O_CLOEXEC);
    if (!error)
        error = SYS(fcntl, ends[0], F_SETFL, O_NONBLOCK);
    if (error)
        refuse(AT_FORK, error);
    output_ends[index] = ends[0];
    *program_end = ends[1];
}

/* As the program's user, so that it can open its /dev/stdout. */
static void open_outputs(void)
{
    if (multiplexed) {
        open_output(0, &stdout_fd);
        open_output(1, &stderr_fd);
    }
}

static int open_workspace(void)
{
    long workspace = SYS(openat, AT_FDCWD, "/workspace", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (workspace < 0)
        refuse(AT_FILES, workspace);
    return (int)workspace;
}

static void take_files(void)
{
    int workspace = open_workspace();
    u32 index;
    if (head.nfiles > MAX_FILES)
        refuse(AT_FRAME, E2BIG);
    become(PROGRAM_ID);
    if (held_fifo < 0) /* the interpreter that waits has its own already */
        open_outputs();
    for (index = 0; index < head.nfiles; index++) {
        char *name;
        int folder;
        long file;
        take_string(path, sizeof path);
        folder = open_parent(workspace, &name);
        file = SYS(openat, folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (file < 0)
            refuse(AT_FILES, file);
        take_into((int)file, take_content_length(), AT_FILES);
        SYS(close, file);
        if (folder != workspace)
            SYS(close, folder);
    }
    become(0);
    SYS(close, workspace);
}

static int stdin_fd;

static void make_stdin(void)
{
    long fd = SYS(memfd_create, "stdin", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        refuse(AT_STDIN, fd);
    stdin_fd = (int)fd;
}

/* The program's stdin: a sealed file in memory, so that nobody has to pump while it runs. */
static void take_stdin(void)
{
    int fd = stdin_fd;
    if (head.stdin_bytes > MAX_CONTENT)
        refuse(AT_FRAME, EFBIG);
    take_into(fd, head.stdin_bytes, AT_STDIN);
    if (SYS(lseek, fd, 0, 0) < 0 || SYS(fchmod, fd, 0444) < 0)
        refuse(AT_STDIN, EIO);
    if (SYS(fcntl, fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        refuse(AT_STDIN, EIO);
    if (take_u32() != FRAME_END)
        refuse(AT_FRAME, EPROTO);
}

/* --- the program --- */

/* What the child found before it could execute; it borrows our memory (vfork), so it simply writes it here. */
static volatile enum stage failed_stage;
static volatile long failed_error;
static u8 child_stack[16384] __attribute__((aligned(16)));

static __attribute__((noreturn)) void child_failed(enum stage stage, long error)
{
    failed_stage = stage;
    failed_error = error;
    die(127);
}

static long limit(int resource, u64 value)
{
    struct rlimit64 both = {value, value};
    return SYS(prlimit64, 0, resource, &both, 0);
}

static void drop_privileges(void)
{
    long error, capability;
    for (capability = 0; capability <= 63; capability++)
        if (SYS(prctl, PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            break; /* past the last one that this kernel knows */
    if ((error = SYS(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) < 0 && error != -EINVAL)
        child_failed(AT_PRIVILEGES, error);
    if ((error = SYS(setgroups, 0, 0)) < 0 || (error = SYS(setresgid, PROGRAM_ID, PROGRAM_ID, PROGRAM_ID)) < 0 ||
        (error = SYS(setresuid, PROGRAM_ID, PROGRAM_ID, PROGRAM_ID)) < 0 ||
        (error = SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) < 0)
        child_failed(AT_PRIVILEGES, error);
}

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#else
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#endif
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, field))
#define ANSWER(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))

/* In a user namespace of its own the program would hold every capability again: it could mount file systems without a size
 * and reach all of the kernel's interfaces that are meant for root. clone3 has its flags in memory, where no filter can look;
 * answered with ENOSYS, C libraries go back to clone. */
static void forbid_user_namespaces(void)
{
    static struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
        ANSWER(ENOSYS),
        LOAD(nr),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 1, 0), /* x32 has numbers of its own */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_clone3, 0, 1),
        ANSWER(ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_clone, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_unshare, 0, 2),
        LOAD(args[0]), /* the low half: both machines are little-endian */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_NEWUSER, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        ANSWER(EPERM),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    long error = SYS(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
    if (error < 0)
        child_failed(AT_PRIVILEGES, error);
}

/* Looks a name without a slash up in the program's own PATH. */
static long execute(void)
{
    const char *search = "/usr/local/bin:/usr/bin:/bin", *at;
    char **variable;
    long error = -ENOENT;
    for (at = argv[0]; *at; at++)
        if (*at == '/')
            return SYS(execve, argv[0], argv, environment);
    for (variable = environment; *variable; variable++)
        if ((*variable)[0] == 'P' && (*variable)[1] == 'A' && (*variable)[2] == 'T' && (*variable)[3] == 'H' &&
            (*variable)[4] == '=')
            search = *variable + 5;
    for (at = search;; at++) {
        u64 length, name = text_length(argv[0]);
        for (length = 0; at[length] && at[length] != ':'; length++)
            ;
        if (length && length + name + 2 <= sizeof path) {
            long tried;
            memcpy(path, at, length);
            path[length] = '/';
            memcpy(path + length + 1, argv[0], name + 1);
            tried = SYS(execve, path, argv, environment);
            if (tried != -ENOENT && tried != -ENOTDIR)
                error = tried;
        }
        at += length;
        if (!*at)
            return error;
    }
}

static void become_program(void)
{
    u64 no_signals = 0;
    long error;
    SYS(setsid, 0);
    if ((error = SYS(dup3, stdin_fd, 0, 0)) < 0 || (error = SYS(dup3, stdout_fd, 1, 0)) < 0 ||
        (error = SYS(dup3, stderr_fd, 2, 0)) < 0)
        child_failed(AT_STDIN, error);
    if ((error = limit(RLIMIT_CORE, 0)) < 0 || (head.processes != UNCHANGED && (error = limit(RLIMIT_NPROC, head.processes)) < 0) ||
        (error = limit(RLIMIT_NOFILE, head.open_files)) < 0)
        child_failed(AT_RLIMITS, error);
    drop_privileges();
    if ((error = SYS(chdir, "/workspace")) < 0)
        child_failed(AT_WORKSPACE, error);
    default_signals();
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &no_signals, 0, SIGSET_BYTES);
    forbid_user_namespaces();
    child_failed(AT_EXECUTE, execute());
}

/* Starts the program; returns its process id once it was really executed. */
static long start(void)
{
    long child = vfork_call(become_program, child_stack + sizeof child_stack, CLONE_VM | CLONE_VFORK | SIGCHLD);
    if (child < 0)
        refuse(AT_FORK, child);
    if (failed_error)
        refuse(failed_stage, failed_error);
    SYS(close, stdout_fd);
    SYS(close, stderr_fd);
    return child;
}

/* --- how it ends --- */

static u64 microseconds(struct __kernel_old_timeval at)
{
    return (u64)at.tv_sec * 1000000 + (u64)at.tv_usec;
}

static u64 full_disk(const char *at, u64 bytes, u64 inodes)
{
    struct statfs disk;
    u64 full = 0;
    if (!SYS(statfs, at, &disk)) {
        if (!disk.f_bfree)
            full |= bytes;
        if (disk.f_files && !disk.f_ffree)
            full |= inodes;
    }
    return full;
}

static u64 full_disks(void)
{
    return full_disk("/workspace", WORKSPACE_FULL, WORKSPACE_INODES) | full_disk("/tmp", TMP_FULL, TMP_INODES);
}

/* --- multiplexed output --- */

static void send(const void *data, u64 length)
{
    const u8 *at = data;
    while (length) {
        long put = SYS(write, MULTIPLEX_FD, at, length);
        if (put == -EINTR)
            continue;
        if (put <= 0)
            die(2); /* nobody listens: the sandbox has no reason to go on */
        at += put;
        length -= (u64)put;
    }
}

/* Passes on what lies in one of the program's output pipes; returns how much, 0 when there is nothing (more). Whoever
 * reads fd 1 slowly slows the program down, as a pipe of its own would. */
static long pump(int index)
{
    struct output_frame *frame = (struct output_frame *)buffer;
    long got;
    if (output_ends[index] < 0)
        return 0;
    got = SYS(read, output_ends[index], buffer + sizeof *frame, sizeof buffer - sizeof *frame);
    if (got == -EAGAIN || got == -EINTR)
        return 0;
    if (got <= 0) {
        SYS(close, output_ends[index]);
        output_ends[index] = -1;
        return 0;
    }
    frame->channel = index ? ERR : OUT;
    frame->length = (u32)got;
    send(buffer, sizeof *frame + (u64)got);
    return got;
}

static void report(u32 kind, u32 a, u32 b)
{
    struct report record = {.magic = REPORT_MAGIC, .kind = kind, .a = a, .b = b};
    if (kind == ENDED || kind == GONE) {
        struct rusage used;
        if (!SYS(getrusage, RUSAGE_CHILDREN, &used)) {
            record.user_us = microseconds(used.ru_utime);
            record.system_us = microseconds(used.ru_stime);
            record.max_rss_kib = (u64)used.ru_maxrss;
        }
        record.full = full_disks();
    }
    if (multiplexed) {
        struct {
            struct output_frame frame;
            struct report record;
        } both = {{REPORTS, sizeof record}, record};
        send(&both, sizeof both);
    } else if (SYS(write, REPORT_FD, &record, sizeof record) != sizeof record)
        die(2); /* nobody listens: the sandbox has no reason to go on */
}

/* --- what the program left --- */

static void send_left(void)
{
    u64 length = sizeof left_message.head + left_message.head.length;
    const u8 *at = (const u8 *)&left_message.head;
    if (multiplexed) {
        left_message.frame.channel = REPORTS;
        left_message.frame.length = (u32)length;
        send(&left_message, sizeof left_message.frame + length);
        return;
    }
    while (length) {
        long put = SYS(write, REPORT_FD, at, length);
        if (put == -EINTR)
            continue;
        if (put <= 0)
            die(2); /* nobody listens */
        at += put;
        length -= (u64)put;
    }
}

/* As the program's user: what the program itself could not read does not go up. */
static void send_what_is_left(void)
{
    if (!head.left_files || !is_there(LEFT_AT))
        return;
    become(PROGRAM_ID);
    report(LEFT, 0, 0);
    send_all(LEFT_AT, head.left_files, head.left_bytes);
    become(0);
}

static long reap(int *status)
{
    return SYS(wait4, -1, status, WNOHANG, 0);
}

/* Waits for a child to end, output to pass on or the control pipe to close, at most `milliseconds` (negative: for ever). */
static void wait_for_change(int signals, long milliseconds)
{
    struct pollfd watched[5] = {{CONTROL_FD, POLLIN, 0},
                                {signals, POLLIN, 0},
                                {held_watch, POLLIN, 0},
                                {output_ends[0], POLLIN, 0},
                                {output_ends[1], POLLIN, 0}};
    struct __kernel_timespec wait = {0, milliseconds * 1000000};
    struct signalfd_siginfo caught;
    SYS(ppoll, watched, multiplexed ? 5 : 3, milliseconds < 0 ? 0 : &wait, 0, SIGSET_BYTES);
    if (watched[1].revents)
        SYS(read, signals, &caught, sizeof caught);
    if (watched[0].revents) {
        long got = SYS(read, CONTROL_FD, buffer, sizeof buffer);
        if (!got)
            die(0); /* the executor let go: with PID 1 everything here ends */
        told_to_end |= got > 0;
    }
    pump(0);
    pump(1);
}

static int wait_for_program(long program, int signals)
{
    for (;;) {
        int status;
        long ended = reap(&status);
        if (ended > 0 && was_stop(ended, status))
            continue;
        if (ended == program)
            return status;
        if (told_to_end)
            SYS(kill, -1, SIGKILL);
        if (ended <= 0)
            wait_for_change(signals, -1);
    }
}

/* Kills and reaps until nothing but PID 1 is left. A new one may be forked during a round: hence rounds of 10 ms. */
static u32 end_all(int signals)
{
    u32 count = 0;
    for (;;) {
        long ended;
        int status;
        SYS(kill, -1, SIGKILL);
        while ((ended = reap(&status)) > 0)
            count += !was_stop(ended, status);
        if (ended == -ECHILD)
            return count;
        wait_for_change(signals, 10);
    }
}

/* --- an interpreter that is started before its program is there ---
 *
 * It is the program's process from its first instruction on: same argv, environment, user and limits. The file that it is
 * told to run is a FIFO, so that it stops in reading it; when the program comes, the FIFO's name goes to the real file, and
 * what that holds is written into the FIFO. Only for interpreters that read all of the file before they run any of it. */

static void make_fifo(int workspace, const char *name)
{
    long error;
    become(PROGRAM_ID);
    error = SYS(mknodat, workspace, name, S_IFIFO | 0600, 0);
    if (error)
        refuse(AT_FILES, error);
}

static void remove_fifo(int workspace, const char *name)
{
    long error;
    become(PROGRAM_ID);
    error = SYS(unlinkat, workspace, name, 0);
    become(0);
    if (error)
        refuse(AT_FILES, error);
}

/* So that the numbers of files and folders tell nobody whether an interpreter waited. */
static void skip_fifo(void)
{
    int workspace = open_workspace();
    make_fifo(workspace, ".fifo");
    remove_fifo(workspace, ".fifo");
    SYS(close, workspace);
}

static long hold(int signals)
{
    int workspace = open_workspace(), status;
    long program, fifo, watch;
    if (head.nfiles || head.stdin_bytes)
        refuse(AT_FRAME, EPROTO);
    take_strings();
    take_string(held_name, sizeof held_name);
    if (take_u32() != FRAME_END)
        refuse(AT_FRAME, EPROTO);
    make_fifo(workspace, held_name);
    open_outputs();
    become(0);
    make_stdin();
    become(PROGRAM_ID);
    /* Not opened again and again for writing alone, until somebody reads: gVisor's FIFO counts each such try as a writer
     * that came and went, and a reader that opens it meanwhile is let in, and finds an empty file. */
    fifo = SYS(openat, workspace, held_name, O_RDWR | O_CLOEXEC);
    if (fifo < 0)
        refuse(AT_FILES, fifo);
    held_watch = (int)SYS(inotify_init1, IN_CLOEXEC | IN_NONBLOCK);
    watch = SYS(fchdir, workspace);
    if (!watch)
        watch = SYS(inotify_add_watch, held_watch, held_name, IN_OPEN);
    if (watch < 0)
        refuse(AT_FILES, watch);
    SYS(chdir, "/");
    become(0);
    program = start();
    while (SYS(read, held_watch, buffer, sizeof buffer) < 0) {
        if (reap(&status) == program)
            refuse(AT_HOLD, status & 0xffff);
        wait_for_change(signals, -1);
    }
    SYS(close, held_watch);
    held_watch = -1;
    held_fifo = (int)fifo;
    SYS(close, workspace);
    report(READY, 0, 0);
    return program;
}

/* Gives the interpreter that waits what its file holds. */
static void let_go(void)
{
    int workspace = open_workspace();
    long file = SYS(openat, workspace, held_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), length;
    if (file < 0)
        refuse(AT_FILES, file);
    length = SYS(read, file, buffer, sizeof buffer);
    if (length < 0 || length > MAX_HELD)
        refuse(AT_FILES, EFBIG);
    if (length && SYS(write, held_fifo, buffer, length) != length)
        refuse(AT_FILES, EIO);
    SYS(close, file);
    SYS(close, held_fifo);
    SYS(close, workspace);
}

/* Every descriptor that the program must not have is closed or will close when it is executed. */
static void take_descriptors(void)
{
    int own;
    if (multiplexed) {
        SYS(close_range, 3, ~0U, 0);
        return;
    }
    for (own = REPORT_FD; own <= STDERR_FD; own++)
        SYS(fcntl, own, F_SETFD, 1 /* FD_CLOEXEC */);
    SYS(close_range, STDERR_FD + 1, ~0U, 0);
}

__attribute__((noreturn, used)) void init(long *stack)
{
    u64 mask = CHILD_MASK;
    long program = 0, signals;
    u32 count;
    int status;

    if (SYS(getpid, 0) != 1)
        die(3); /* outside a sandbox its kill(-1) would reach the host */
    multiplexed = stack[0] > 1;
    take_descriptors();
    SYS(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    SYS(umask, 022);
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &mask, 0, SIGSET_BYTES);
    signals = SYS(signalfd4, -1, &mask, SIGSET_BYTES, O_CLOEXEC | O_NONBLOCK);
    if (signals < 0)
        refuse(AT_FORK, signals);
    report(READY, 0, 0);

    take(&head, sizeof head);
    if (head.magic == HOLD_MAGIC) {
        int workspace;
        program = hold((int)signals);
        take(&head, sizeof head);
        workspace = open_workspace();
        remove_fifo(workspace, held_name);
        SYS(close, workspace);
    } else {
        skip_fifo();
        make_stdin();
    }
    if (head.magic != FRAME_MAGIC)
        refuse(AT_FRAME, EPROTO);
    take_strings();
    take_files();
    take_stdin();
    told_to_end = buffer_start < buffer_end;
    if (!program)
        program = start();
    SYS(close, stdin_fd);
    report(STARTED, 0, 0);
    if (held_fifo >= 0)
        let_go();

    status = wait_for_program(program, (int)signals);
    if (status & 0x7f)
        report(ENDED, SIGNALLED, status & 0x7f);
    else
        report(ENDED, EXITED, (status >> 8) & 0xff);
    count = end_all((int)signals);
    while (pump(0) || pump(1))
        ;
    send_what_is_left();
    report(GONE, count, 0);
    while (multiplexed)
        wait_for_change((int)signals, -1);
    die(0);
}

ENTRY(init);
