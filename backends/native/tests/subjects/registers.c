// Keeps patterns in general, floating point and vector registers in a loop without a single call, and says from time to
// time whether they are still there: "ok" or "bad WHICH".
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

static volatile sig_atomic_t go_on;
static void on_alarm(int s) { (void)s; go_on = 0; }

__attribute__((target("avx"))) static int wide(void)
{
    unsigned char in[4][32], out[4][32];
    for (int i = 0; i < 4; i++)
        memset(in[i], 0x11 * (i + 1), 32);
    go_on = 1;
    __asm__ volatile("vmovdqu (%0), %%ymm1; vmovdqu 32(%0), %%ymm7; vmovdqu 64(%0), %%ymm10; vmovdqu 96(%0), %%ymm15\n"
                     "1: pause; cmpl $0, (%2); jne 1b\n"
                     "vmovdqu %%ymm1, (%1); vmovdqu %%ymm7, 32(%1); vmovdqu %%ymm10, 64(%1); vmovdqu %%ymm15, 96(%1)"
                     : : "r"(in), "r"(out), "r"(&go_on) : "memory", "xmm1", "xmm7", "xmm10", "xmm15");
    return memcmp(in, out, sizeof in);
}

static int narrow(void)
{
    unsigned char in[2][16], out[2][16];
    long double there = 0;
    unsigned long general = 0, flags = 0;
    memset(in[0], 0x5a, 16);
    memset(in[1], 0xa5, 16);
    go_on = 1;
    __asm__ volatile("movdqu (%3), %%xmm3; movdqu 16(%3), %%xmm12; fldpi; movabs $0x123456789abcdef0, %%r13; std\n"
                     "1: pause; cmpl $0, (%5); jne 1b\n"
                     "pushfq; popq %2; cld; fstpt %0; mov %%r13, %1; movdqu %%xmm3, (%4); movdqu %%xmm12, 16(%4)"
                     : "=m"(there), "=&r"(general), "=&r"(flags)
                     : "r"(in), "r"(out), "r"(&go_on) : "memory", "r13", "xmm3", "xmm12", "cc");
    return memcmp(in, out, sizeof in) || general != 0x123456789abcdef0 || !(flags & 0x400)
        || there < 3.14159265358979L || there > 3.1415926535898L;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &action, 0);
    struct itimerval every = { { 0, 20000 }, { 0, 20000 } };
    setitimer(ITIMER_REAL, &every, 0);
    int avx = __builtin_cpu_supports("avx");
    puts("ready");
    for (;;) {
        if (narrow())
            puts("bad registers");
        else if (avx && wide())
            puts("bad vector registers");
        else
            puts("ok");
    }
}
