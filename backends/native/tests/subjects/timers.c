// Timers that fire once and are armed anew when their signal is taken, and one of each kind that goes on by itself, with
// much shared memory, which takes longer to be saved than any of them waits, and one that measures the time of a thread.
// "ok" each time that all have fired some more, "bad WHAT" for one that has not within a second.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { ALARM, ONCE, AGAIN, COUNT, MUCH = 64 << 20 };
static const char *names[] = { "alarm", "once", "again" };
static timer_t timers[COUNT];

static volatile sig_atomic_t measured;

static void on_measure(int signal) { measured++; }

// Works a little, again and again, and is told of it.
static void *work(void *unused)
{
    timer_t own;
    struct sigevent told = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF };
    struct itimerspec each = { { 0, 1000000 }, { 0, 1000000 } };
    told._sigev_un._tid = syscall(SYS_gettid);
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &told, &own) || timer_settime(own, 0, &each, 0))
        puts("bad thread");
    for (;;) {
        for (volatile int i = 0; i < 1000000; i++)
            ;
        usleep(5000);
    }
}

static int make(int which, int signal, int interval)
{
    struct sigevent told = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal };
    struct itimerspec first = { { 0, interval }, { 0, 12000000 } };
    return timer_create(CLOCK_MONOTONIC, &told, &timers[which]) || timer_settime(timers[which], 0, &first, 0);
}

int main(void)
{
    int fired[COUNT] = { 0 }, signals[COUNT] = { SIGALRM, SIGUSR2, SIGRTMIN + 2 };
    struct itimerval alarm = { { 0, 0 }, { 0, 10000 } };
    struct itimerspec once = { { 0, 0 }, { 0, 12000000 } };
    struct timespec limit = { 1, 0 };
    sigset_t set;
    setvbuf(stdout, 0, _IOLBF, 0);
    sigemptyset(&set);
    for (int i = 0; i < COUNT; i++)
        sigaddset(&set, signals[i]);
    sigprocmask(SIG_BLOCK, &set, 0);
    char *shared = mmap(0, MUCH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 3;
    memset(shared, 1, MUCH);
    if (setitimer(ITIMER_REAL, &alarm, 0) || make(ONCE, SIGUSR2, 0) || make(AGAIN, SIGRTMIN + 2, 7000000))
        return 4;
    signal(SIGPROF, on_measure);
    pthread_t thread;
    if (pthread_create(&thread, 0, work, 0))
        return 5;
    puts("ready");
    for (int before = 0;; before = measured) {
        for (int i = 0; i < COUNT; i++) {
            sigset_t one;
            sigemptyset(&one);
            sigaddset(&one, signals[i]);
            int signal;
            // A capture ends a wait that has a limit.
            while ((signal = sigtimedwait(&one, 0, &limit)) < 0 && errno == EINTR)
                ;
            if (signal < 0)
                printf("bad %s\n", names[i]);
            fired[i]++;
            if (i == ALARM)
                setitimer(ITIMER_REAL, &alarm, 0);
            if (i == ONCE)
                timer_settime(timers[ONCE], 0, &once, 0);
        }
        for (int tries = 0; tries < 200 && measured == before; tries++)
            usleep(5000);
        if (measured == before)
            puts("bad time of a thread");
        if (fired[0] % 10 == 0)
            puts("ok");
    }
}
