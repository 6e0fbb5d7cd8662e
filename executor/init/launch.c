/* crucible-launch PARENT_PID CGROUP_PROCS_FILE... -- PROGRAM ARGS...
 *
 * Runs on the host between the executor and a sandbox: puts itself into the sandbox's cgroups, so that no instruction of
 * the sandbox runs outside them, binds its life to the executor's, leaves the executor's session, becomes the first that
 * a host short of memory ends (sandboxes whose limits together exceed it must not cost it a service), and then PROGRAM.
 * PARENT_PID is compared after the death signal is armed: an executor that died before is noticed too.
 * Each start of runsc, and it starts itself three times more, would wait 5 to 30 ms for the kernel to register it for
 * process-wide memory barriers, which its systrap platform never asks for; `answer_registration` spares it the wait.
 * It exits with 111 and a line on stderr when any step fails: a sandbox without its limits is never started.
 */
#include "sys.h"
#include <linux/audit.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>

#define SIGKILL 9

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#else
#define NATIVE AUDIT_ARCH_AARCH64
#endif
/* Where a filter finds a word of `struct seccomp_data`; of the first argument, the low half (both are little-endian). */
#define FIELD(field) (u32) __builtin_offsetof(struct seccomp_data, field)

static __attribute__((noreturn)) void fail(const char *what, const char *detail)
{
    SYS(write, 2, "crucible-launch: ", 17);
    SYS(write, 2, what, text_length(what));
    SYS(write, 2, detail, text_length(detail));
    SYS(write, 2, "\n", 1);
    die(111);
}

static long number(const char *text)
{
    long value = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > 100000000)
            fail("not a process id: ", text);
        value = value * 10 + (*text - '0');
    }
    return value;
}

static void put(const char *file, const char *text)
{
    long length = (long)text_length(text), fd = SYS(openat, AT_FDCWD, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        fail("cannot open ", file);
    if (SYS(write, fd, text, length) != length)
        fail("cannot write to ", file);
    SYS(close, fd);
}

/* membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) is answered with 0 and not done. Who then asks for such a barrier is
 * told EPERM; the global barrier, which a program's own membarrier(2) comes down to, is untouched. */
static void answer_registration(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_membarrier, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (SYS(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        fail("cannot install a seccomp filter", "");
}

__attribute__((noreturn, used)) void launch(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    char **environment = argv + argc + 1;
    long next = 2;

    if (argc < 4)
        fail("usage: crucible-launch PARENT_PID CGROUP_PROCS_FILE... -- PROGRAM ARGS...", "");
    if (SYS(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        fail("cannot bind its life to the executor's", "");
    if (SYS(getppid, 0) != number(argv[1]))
        fail("the executor is gone already", "");
    for (; next < argc && !(argv[next][0] == '-' && argv[next][1] == '-' && !argv[next][2]); next++)
        put(argv[next], "0\n");
    if (next + 1 >= argc)
        fail("no program given", "");
    put("/proc/self/oom_score_adj", "1000\n");
    SYS(setsid, 0);
    answer_registration();
    SYS(execve, argv[next + 1], argv + next + 1, environment);
    fail("cannot execute ", argv[next + 1]);
}

ENTRY(launch);
