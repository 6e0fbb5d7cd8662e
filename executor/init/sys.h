/* Raw Linux system calls for two small freestanding programs.
 *
 * There is no libc behind them on purpose: the init is executed from a bare file descriptor (`runsc run --exec-fd`), where
 * glibc's static start-up code aborts because /proc/self/exe is no path, and the fewer bytes run as root the better.
 * Every call returns the kernel's answer: a negative errno on failure.
 */
#ifndef CRUCIBLE_SYS_H
#define CRUCIBLE_SYS_H

#include <asm/unistd.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64; /* both supported machines are LP64 */

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
/* Runs `function`, which never returns, in a child that borrows this memory, on a stack of its own, and waits until it has
 * executed a program or exited. In a gVisor sandbox this saves a whole address space against a fork. */
static inline long vfork_call(void (*function)(void), void *stack_top, long flags)
{
    long result;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%[function]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(__NR_clone), "D"(flags), "S"(stack_top), "d"(0), "r"(r10), "r"(r8), [function] "r"(function)
                     : "rcx", "r11", "memory", "cc");
    return result;
}
/* The stack holds argc, argv, NULL, envp as the kernel left it; `start` receives its address. */
#define ENTRY(start)                                                                                                        \
    __asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall " #start "\n\thlt\n")
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
    return x0;
}
static inline long vfork_call(void (*function)(void), void *stack_top, long flags)
{
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = flags;
    register void *x1 __asm__("x1") = stack_top;
    register long x2 __asm__("x2") = 0;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "blr %[function]\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), [function] "r"(function)
                     : "memory", "cc", "x30");
    return x0;
}
#define ENTRY(start) __asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl " #start "\n\tbrk #1\n")
#else
#error "crucible-init supports x86_64 and aarch64"
#endif

#define SYS(n, ...) SYS_PICK(__VA_ARGS__, SYS_A6, SYS_A5, SYS_A4, SYS_A3, SYS_A2, SYS_A1)(n, __VA_ARGS__)
#define SYS_PICK(a, b, c, d, e, f, name, ...) name
#define SYS_A1(n, a) sys6(__NR_##n, (long)(a), 0, 0, 0, 0, 0)
#define SYS_A2(n, a, b) sys6(__NR_##n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS_A3(n, a, b, c) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS_A4(n, a, b, c, d) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS_A5(n, a, b, c, d, e) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS_A6(n, a, b, c, d, e, f) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline __attribute__((noreturn)) void die(int code)
{
    for (;;)
        SYS(exit_group, code);
}

/* True when `status`, from wait4, says that a child only stopped: one that has made this process its tracer, which needs
 * nobody's consent. It is released, with the signal that it stopped for. */
static inline int was_stop(long child, int status)
{
    int signal = (status >> 8) & 0xff;
    if ((status & 0xff) != 0x7f)
        return 0;
    SYS(ptrace, 17 /* PTRACE_DETACH */, child, 0, signal == 5 /* SIGTRAP, of exec */ ? 0 : signal);
    return 1;
}

/* A program must not inherit what a shell, nohup or a daemon above us ignores: `execve` keeps that. */
static inline void default_signals(void)
{
    u64 action[4] = {0, 0, 0, 0}; /* SIG_DFL, no flags, no restorer, an empty mask */
    for (long number = 1; number <= 31; number++)
        SYS(rt_sigaction, number, action, 0, 8); /* refused for SIGKILL and SIGSTOP */
}

static inline u64 text_length(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    return length;
}

/* The compiler may call these two for its own purposes, also without a libc. */
void *memset(void *to, int value, u64 length);
void *memcpy(void *to, const void *from, u64 length);

void *memset(void *to, int value, u64 length)
{
    u8 *bytes = to;
    while (length--)
        *bytes++ = (u8)value;
    return to;
}

void *memcpy(void *to, const void *from, u64 length)
{
    u8 *target = to;
    const u8 *source = from;
    while (length--)
        *target++ = *source++;
    return to;
}

#endif
