/* crucible-tend PARENT_PID REPORT_FD OPEN_FILES LEFT_FILES LEFT_BYTES -- PROGRAM ARGS...
 *
 * Runs on the host under the engine `subprocess`: starts PROGRAM as a child in a session of its own and, as the reaper of
 * all its descendants, ends and reaps whatever it leaves behind, also what changed session or lost its parent. Works without
 * root. It ends everything when it gets SIGTERM, which the kernel sends too when the executor dies. REPORT_FD takes reports,
 * as the sandbox's init makes them, and what the program left in `out`, unless SIGTERM ended it; SIGINT ends everything as
 * well and lets the files go up. What it cannot do: a program of the same user may kill it, and then only the program itself
 * is sure to die with it.
 */
#include "left.h"
#include <asm/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/signalfd.h>
#include <linux/time_types.h>
#include <linux/wait.h>

#define SIGINT 2
#define SIGKILL 9
#define SIGTERM 15
#define SIGCHLD 17
#define SIGSET_BYTES 8

static char children_file[64];
static int report_fd = REPORT_FD;

static void report(u32 kind, u32 a, u32 b)
{
    struct report record = {.magic = REPORT_MAGIC, .kind = kind, .a = a, .b = b};
    struct rusage used;
    if (!SYS(getrusage, RUSAGE_CHILDREN, &used)) {
        record.user_us = (u64)used.ru_utime.tv_sec * 1000000 + (u64)used.ru_utime.tv_usec;
        record.system_us = (u64)used.ru_stime.tv_sec * 1000000 + (u64)used.ru_stime.tv_usec;
        record.max_rss_kib = (u64)used.ru_maxrss;
    }
    SYS(write, report_fd, &record, sizeof record); /* if nobody listens, all the more reason to go on and clean up */
}

static void send_left(void)
{
    const u8 *at = (const u8 *)&left_message.head;
    u64 length = sizeof left_message.head + left_message.head.length;
    while (length) {
        long put = SYS(write, report_fd, at, length);
        if (put == -EINTR)
            continue;
        if (put <= 0)
            die(1); /* nobody listens, and all descendants are gone */
        at += put;
        length -= (u64)put;
    }
}

static __attribute__((noreturn)) void refuse(enum stage stage, long error)
{
    report(REFUSED, stage, (u32)-error);
    die(1);
}

static long number(const char *text)
{
    long value = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > 100000000000000000)
            refuse(AT_FRAME, -EINVAL);
        value = value * 10 + (*text - '0');
    }
    return value;
}

static void name_children_file(void)
{
    static const char head[] = "/proc/self/task/", tail[] = "/children";
    char digits[24], *at = children_file;
    long self = SYS(gettid, 0);
    u64 count = 0;
    memcpy(at, head, sizeof head - 1);
    at += sizeof head - 1;
    for (; self; self /= 10)
        digits[count++] = (char)('0' + self % 10);
    while (count)
        *at++ = digits[--count];
    memcpy(at, tail, sizeof tail);
}

/* Sends SIGKILL to every process whose parent is this one now. */
static void kill_children(void)
{
    char text[4096];
    long got, pid = 0, fd = SYS(openat, AT_FDCWD, children_file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return; /* a kernel without CONFIG_PROC_CHILDREN: only the process group is ended then */
    while ((got = SYS(read, fd, text, sizeof text)) > 0) {
        long index;
        for (index = 0; index < got; index++) {
            if (text[index] >= '0' && text[index] <= '9') {
                pid = pid * 10 + (text[index] - '0');
            } else if (pid > 1) {
                SYS(kill, pid, SIGKILL);
                pid = 0;
            }
        }
    }
    SYS(close, fd);
}

static __attribute__((noreturn)) void child_failed(int errors, enum stage stage, long error)
{
    u32 words[2] = {stage, (u32)-error};
    SYS(write, errors, words, sizeof words);
    die(127);
}

static __attribute__((noreturn)) void become_program(char **argv, char **environment, long open_files, int errors)
{
    struct rlimit64 none = {0, 0}, files = {(u64)open_files, (u64)open_files};
    u64 no_signals = 0;
    long error;
    SYS(setsid, 0);
    SYS(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if ((error = SYS(prlimit64, 0, RLIMIT_CORE, &none, 0)) < 0 || (error = SYS(prlimit64, 0, RLIMIT_NOFILE, &files, 0)) < 0)
        child_failed(errors, AT_RLIMITS, error);
    default_signals();
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &no_signals, 0, SIGSET_BYTES);
    child_failed(errors, AT_EXECUTE, SYS(execve, argv[0], argv, environment));
}

/* Starts the program; returns its process id once it was really executed. */
static long start(char **argv, char **environment, long open_files)
{
    int errors[2];
    u32 words[2];
    long got, child = SYS(pipe2, errors, O_CLOEXEC);
    if (child >= 0)
        child = SYS(clone, SIGCHLD, 0, 0, 0, 0);
    if (child < 0)
        refuse(AT_FORK, child);
    if (!child)
        become_program(argv, environment, open_files, errors[1]);
    for (got = 0; got < 3; got++)
        SYS(close, got);
    SYS(close, errors[1]);
    do
        got = SYS(read, errors[0], words, sizeof words);
    while (got == -EINTR);
    if (got == sizeof words)
        refuse(words[0], -(long)words[1]);
    SYS(close, errors[0]);
    return child;
}

/* Waits for a signal at most `milliseconds` (negative: for ever); returns SIGTERM or SIGINT when it was one of them. */
static int told_to_end(int signals, long milliseconds)
{
    struct pollfd watched = {signals, POLLIN, 0};
    struct __kernel_timespec wait = {0, milliseconds * 1000000};
    struct signalfd_siginfo caught;
    SYS(ppoll, &watched, 1, milliseconds < 0 ? 0 : &wait, 0, SIGSET_BYTES);
    if (SYS(read, signals, &caught, sizeof caught) != sizeof caught || caught.ssi_signo == SIGCHLD)
        return 0;
    return (int)caught.ssi_signo;
}

static u32 end_all(long program, int signals)
{
    u32 count = 0;
    SYS(kill, -program, SIGKILL);
    for (;;) {
        int status;
        long ended;
        kill_children();
        while ((ended = SYS(wait4, -1, &status, WNOHANG, 0)) > 0)
            count += !was_stop(ended, status);
        if (ended == -ECHILD)
            return count;
        told_to_end(signals, 5);
    }
}

__attribute__((noreturn, used)) void tend(long *stack)
{
    long argc = stack[0], program, signals, ended = 0;
    char **argv = (char **)(stack + 1), **environment = argv + argc + 1;
    u64 mask = (1UL << (SIGCHLD - 1)) | (1UL << (SIGTERM - 1)) | (1UL << (SIGINT - 1));
    u32 count;
    int status, told = 0;

    if (argc < 8)
        die(2);
    report_fd = (int)number(argv[2]);
    SYS(fcntl, report_fd, F_SETFD, 1 /* FD_CLOEXEC */);
    default_signals(); /* one that is ignored would not even wait */
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &mask, 0, SIGSET_BYTES);
    signals = SYS(signalfd4, -1, &mask, SIGSET_BYTES, O_CLOEXEC | O_NONBLOCK);
    SYS(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    SYS(prctl, PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
    if (signals < 0 || SYS(getppid, 0) != number(argv[1]))
        die(1);
    name_children_file();
    program = start(argv + 7, environment, number(argv[3]));
    report(STARTED, 0, 0);
    while (ended != program) {
        ended = SYS(wait4, -1, &status, WNOHANG, 0);
        if (ended > 0 && was_stop(ended, status))
            ended = 0;
        else if (ended <= 0 && (told = told_to_end((int)signals, -1)) == SIGTERM)
            break;
        if (told == SIGINT)
            SYS(kill, program, SIGKILL);
    }
    if (ended == program)
        report(ENDED, status & 0x7f ? SIGNALLED : EXITED, (u32)(status & 0x7f ? status & 0x7f : (status >> 8) & 0xff));
    count = end_all(program, (int)signals);
    if (told != SIGTERM && number(argv[4]) && is_there("out")) {
        report(LEFT, 0, 0);
        send_all("out", (u64)number(argv[4]), (u64)number(argv[5]));
    }
    report(GONE, count, 0);
    die(0);
}

ENTRY(tend);
