// What a process and its threads have told the kernel about themselves, as far as this kernel knows it. Each SIGUSR1: "ok",
// or "bad WHAT" for what is no longer as it was.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MDWE = 65, GET_MDWE, MERGE, GET_MERGE, MOST = 16 };
static int timer, self;
static long other;
static sem_t begun;
static struct { const char *name; long value; } was[MOST];
static int known, bad, first = 1;

static void is(const char *name, long value)
{
    if (first)
        was[known].name = name, was[known].value = value;
    else if (was[known].value != value)
        printf("bad %s: %ld, not %ld\n", name, value, was[known].value), bad = 1;
    known++;
}

static long in_file(const char *path, const char *before, int base)
{
    char text[4096] = "", *at;
    int fd = open(path, O_RDONLY);
    if (read(fd, text, sizeof text - 1) < 0)
        return -1;
    close(fd);
    return (at = strstr(text, before)) ? strtol(at + strlen(before), 0, base) : -2;
}

static void look(void)
{
    char path[64];
    int policy = 0;
    unsigned long nodes[16] = { 0 };
    struct itimerspec left;
    bad = known = 0;
    is("core filter", in_file("/proc/self/coredump_filter", "", 16));
    is("no new code", prctl(GET_MDWE, 0, 0, 0, 0));
    is("equal pages", prctl(GET_MERGE, 0, 0, 0, 0));
    is("huge pages", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    is("slack", prctl(PR_GET_TIMERSLACK));
    snprintf(path, sizeof path, "/proc/%ld/timerslack_ns", other);
    is("slack of a thread", in_file(path, "", 10));
    is("priority of input and output", syscall(SYS_ioprio_get, 1, 0));
    is("that of a thread", syscall(SYS_ioprio_get, 1, other));
    is("policy", syscall(SYS_get_mempolicy, &policy, nodes, 1024L, 0, 0) ? -1 : policy);
    is("nodes", nodes[0]);
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", timer);
    is("a pidfd for a thread", fcntl(self, F_GETFL) & O_EXCL);
    is("flags of a timer", in_file(path, "settime flags: ", 8));
    is("its moment", !timerfd_gettime(timer, &left) && left.it_value.tv_sec > 0);
    if (!bad && !first)
        puts("ok");
    first = 0;
}

static void *rest(void *unused)
{
    other = syscall(SYS_gettid);
    prctl(PR_SET_TIMERSLACK, 70000);
    syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7);
    sem_post(&begun);
    for (;;)
        pause();
}

int main(void)
{
    pthread_t thread;
    sigset_t set;
    unsigned long node = 1;
    struct itimerspec late = { { 0, 0 }, { time(0) + 100000, 0 } };
    setvbuf(stdout, 0, _IOLBF, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    int filter = open("/proc/self/coredump_filter", O_WRONLY);
    if (write(filter, "0x7", 3) != 3 || close(filter) || prctl(PR_SET_TIMERSLACK, 60000))
        return 3;
    self = syscall(SYS_pidfd_open, getpid(), O_EXCL);
    timer = timerfd_create(CLOCK_REALTIME, 0);
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &late, 0) || syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6))
        return 4;
    syscall(SYS_set_mempolicy, 3, &node, 64L);
    // But for memory that asks for them, since Linux 6.18.
    if (prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0))
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    prctl(MERGE, 1, 0, 0, 0);
    prctl(MDWE, 1, 0, 0, 0);
    if (pthread_create(&thread, 0, rest, 0) || sem_wait(&begun))
        return 5;
    look();
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        look();
    }
}
