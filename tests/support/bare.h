/* What an aarch64 Linux program needs of the kernel, with no C library: a main that gets its words,
 * files read and written whole, zeroed memory, threads. Emulated tests link it in seconds, where a
 * C library for another processor would first have to be built. */
#ifndef BARE_H
#define BARE_H

static long kernel(long number, long a, long b, long c, long d, long e) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

__attribute__((noreturn)) static void quit(long status) {
    for (;;) kernel(94, status, 0, 0, 0, 0); /* exit_group */
}

/* Zeroed memory, page-aligned; at least one page. */
static void *zeroed(long bytes) {
    register long x5 __asm__("x5") = 0;
    register long x8 __asm__("x8") = 222; /* mmap */
    register long x0 __asm__("x0") = 0;
    register long x1 __asm__("x1") = bytes + 4096;
    register long x2 __asm__("x2") = 3;    /* read, write */
    register long x3 __asm__("x3") = 0x22; /* private, anonymous */
    register long x4 __asm__("x4") = -1;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    if (x0 < 0 && x0 > -4096) quit(3);
    return (void *)x0;
}

/* A file's bytes, with zeros behind them. */
static void *contents(const char *path, long *bytes) {
    const long file = kernel(56, -100, (long)path, 0, 0, 0); /* openat, read only */
    if (file < 0) quit(4);
    *bytes = kernel(62, file, 0, 2, 0, 0); /* lseek to the end */
    kernel(62, file, 0, 0, 0, 0);
    char *made = zeroed(*bytes);
    for (long done = 0; done < *bytes;) {
        const long got = kernel(63, file, (long)(made + done), *bytes - done, 0, 0);
        if (got <= 0) quit(4);
        done += got;
    }
    kernel(57, file, 0, 0, 0, 0);
    return made;
}

/* Writes a file anew. */
static void keep(const char *path, const void *data, long bytes) {
    const long file = kernel(56, -100, (long)path, 01 | 0100 | 01000, 0600, 0);
    if (file < 0) quit(5);
    for (long done = 0; done < bytes;) {
        const long put = kernel(64, file, (long)data + done, bytes - done, 0, 0);
        if (put <= 0) quit(5);
        done += put;
    }
    kernel(57, file, 0, 0, 0, 0);
}

static long number(const char *word) {
    long n = 0;
    for (; *word >= '0' && *word <= '9'; word++) n = 10 * n + *word - '0';
    return n;
}

/* A thread of this process that runs `enter(argument)` and ends. */
static void start(void (*enter)(long), long argument) {
    long *top = (long *)((char *)zeroed(1 << 18) + (1 << 18));
    top[-1] = argument;
    top[-2] = (long)enter;
    register long x8 __asm__("x8") = 220;     /* clone */
    register long x0 __asm__("x0") = 0x50f00; /* VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
    register long x1 __asm__("x1") = (long)(top - 2);
    __asm__ volatile("mov x2, xzr\n mov x3, xzr\n mov x4, xzr\n"
                     "svc 0\n"
                     "cbnz x0, 1f\n"
                     "ldp x9, x0, [sp], #16\n" /* the new thread, on its own stack */
                     "blr x9\n"
                     "mov x8, #93\n" /* exit */
                     "svc 0\n"
                     "1:\n"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1)
                     : "x2", "x3", "x4", "x9", "x30", "memory");
    if (x0 < 0) quit(6);
}

static int run(int count, char **words);

/* The stack of a new process begins with the count of its words, then the words. */
__attribute__((used)) static void begin(long *stack) {
    quit(run((int)stack[0], (char **)(stack + 1)));
}
__asm__(".global _start\n_start:\n mov x0, sp\n b begin\n");

#endif
