/* restless FILE [adopts]: threads that wait in many ways and check themselves. FILE is mapped shared: how often each thread went
 * round, its signal mask and tid, and what went wrong first. Built and watched by tests/kills.rs, which knows the layout. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 12
struct state {
    volatile uint64_t rounds[THREADS], tid[THREADS], mask[THREADS];
    /* Of the first thing that went wrong: the thread (from 1), the line, a value. */
    volatile uint64_t wrong[3];
    /* Whether it adopts orphans. */
    volatile uint64_t adopts;
};
static struct state *state;

static void wrong(int thread, int line, long value) {
    if (state->wrong[0]) return;
    state->wrong[1] = line;
    state->wrong[2] = value;
    state->wrong[0] = thread + 1;
}
#define EXPECT(thread, condition, value) do { if (!(condition)) wrong(thread, __LINE__, (long)(value)); } while (0)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
#define BIT(s) (1UL << ((s) - 1))
#define ALL (BIT(SIGUSR1) | BIT(SIGUSR2) | BIT(SIGALRM) | BIT(SIGRTMIN + 1))

/* Every thread has a mask of its own, which a capture must not change. */
static void begin(int thread, uint64_t mask) {
    state->mask[thread] = mask;
    state->tid[thread] = syscall(SYS_gettid);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}
static void round_done(int thread) {
    uint64_t mask = 0;
    syscall(SYS_rt_sigprocmask, 0, 0, &mask, 8);
    EXPECT(thread, mask == state->mask[thread], mask);
    state->rounds[thread]++;
}
/* A sleep is never cut short. */
static void nap(int thread, long microseconds) {
    struct timespec t = {0, microseconds * 1000};
    double before = now();
    int r = nanosleep(&t, 0);
    EXPECT(thread, r == 0, errno);
    EXPECT(thread, now() - before >= microseconds / 1e6, microseconds);
}

static int numbers[2], pairs[2], event, watcher, never[2];

static void *spins(void *unused) {
    const int me = 1;
    begin(me, ALL);
    for (uint64_t n = 1;; n++) {
        uint64_t low = 0, high = 0, count = 0, other = ~n;
        asm volatile("mov %[n], %%r12; mov %[other], %%r13; movq %[n], %%xmm7; movq %[other], %%xmm15\n"
                     "fldpi; xor %%r14d, %%r14d; mov $50000, %%ecx\n"
                     "1: inc %%r14; dec %%ecx; jnz 1b\n"
                     "movq %%xmm7, %[low]; movq %%xmm15, %[high]; mov %%r14, %[count]\n"
                     "xor %%r12, %[low]; xor %%r13, %[high]; fldpi; fcomip; fstp %%st; jne 2f; jmp 3f\n"
                     "2: mov $7, %[low]\n3:"
                     : [low] "=&r"(low), [high] "=&r"(high), [count] "=&r"(count)
                     : [n] "r"(n), [other] "r"(other)
                     : "rcx", "r12", "r13", "r14", "xmm7", "xmm15", "cc");
        EXPECT(me, low == 0 && high == 0 && count == 50000, low | high);
        round_done(me);
        if (n % 8 == 0) nap(me, 1000);
    }
    return unused;
}

static void *writes(void *unused) {
    const int me = 2;
    begin(me, ALL);
    for (uint64_t n = 1;; n++) {
        uint64_t one = 1;
        EXPECT(me, write(numbers[1], &n, 8) == 8, errno);
        EXPECT(me, send(pairs[1], &n, 8, 0) == 8, errno);
        EXPECT(me, write(event, &one, 8) == 8, errno);
        round_done(me);
        nap(me, 700);
    }
    return unused;
}

static void *reads(void *unused) {
    const int me = 3;
    begin(me, ALL);
    for (uint64_t n = 1, got;; n++) {
        long r = read(numbers[0], &got, 8);
        EXPECT(me, r == 8, errno);
        EXPECT(me, got == n, got);
        round_done(me);
    }
    return unused;
}

static void *polls(void *unused) {
    const int me = 4;
    begin(me, ALL);
    for (uint64_t n = 1, got;; n++) {
        struct pollfd entry = {pairs[0], POLLIN, 0};
        struct timespec limit = {5, 0};
        sigset_t mask;
        memset(&mask, 0, sizeof mask);
        *(uint64_t *)&mask = ALL;
        int r = n & 1 ? poll(&entry, 1, -1) : ppoll(&entry, 1, &limit, &mask);
        EXPECT(me, r == 1, errno);
        EXPECT(me, recv(pairs[0], &got, 8, 0) == 8 && got == n, got);
        round_done(me);
    }
    return unused;
}

static void *waits_for_nobody(void *unused) {
    const int me = 5;
    begin(me, ALL);
    for (int word = 0;;) {
        struct timespec limit = {0, 2500000};
        long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit, 0, 0);
        EXPECT(me, r == -1 && errno == ETIMEDOUT, errno);
        round_done(me);
    }
    return unused;
}

static __thread volatile int handled;
static volatile uint64_t answered, alarms, queued;
static void on_usr2(int s) { (void)s; handled = 1; }
static void on_alarm(int s) { (void)s; alarms++; }
static void on_queued(int s, siginfo_t *info, void *context) {
    (void)s; (void)context;
    EXPECT(8, (uint64_t)info->si_value.sival_int == queued + 1, info->si_value.sival_int);
    queued = info->si_value.sival_int;
}

static void *suspends(void *unused) {
    const int me = 6;
    sigset_t mask;
    memset(&mask, 0, sizeof mask);
    *(uint64_t *)&mask = ALL & ~BIT(SIGUSR2);
    begin(me, ALL);
    for (;;) {
        handled = 0;
        int r = sigsuspend(&mask);
        EXPECT(me, r == -1 && errno == EINTR && handled, errno);
        answered++;
        round_done(me);
    }
    return unused;
}

static void *signals(void *unused) {
    const int me = 7;
    begin(me, ALL);
    while (!state->tid[6] || !state->tid[8]) nap(me, 1000);
    for (int n = 1;; n++) {
        uint64_t before = answered;
        syscall(SYS_tgkill, getpid(), state->tid[6], SIGUSR2);
        double since = now();
        while (answered == before && now() - since < 10) nap(me, 200);
        EXPECT(me, answered != before, n);
        siginfo_t info = {0};
        info.si_code = SI_QUEUE;
        info.si_value.sival_int = n;
        EXPECT(me, syscall(SYS_rt_tgsigqueueinfo, getpid(), state->tid[8], SIGRTMIN + 1, &info) == 0, errno);
        round_done(me);
        nap(me, 300);
    }
    return unused;
}

/* On an alternate stack of its own, in a read that never ends but by being restarted. */
static void *receives(void *unused) {
    const int me = 8;
    stack_t own = {.ss_sp = malloc(65536), .ss_size = 65536}, found;
    begin(me, ALL & ~BIT(SIGRTMIN + 1));
    sigaltstack(&own, 0);
    for (;;) {
        struct pollfd entry = {never[0], POLLIN, 0};
        poll(&entry, 1, 3);
        sigaltstack(0, &found);
        EXPECT(me, found.ss_sp == own.ss_sp && found.ss_size == own.ss_size && !found.ss_flags, found.ss_flags);
        round_done(me);
    }
    return unused;
}

static void *watches(void *unused) {
    const int me = 9;
    begin(me, ALL);
    for (uint64_t got;;) {
        struct epoll_event found;
        int r = epoll_wait(watcher, &found, 1, -1);
        /* The kernel itself lets this call fail when its caller was stopped. */
        if (r < 0 && errno == EINTR) continue;
        EXPECT(me, r == 1, r);
        EXPECT(me, read(event, &got, 8) == 8, errno);
        round_done(me);
    }
    return unused;
}

static void *is_alarmed(void *unused) {
    const int me = 10;
    begin(me, ALL & ~BIT(SIGALRM));
    struct itimerval every = {{0, 1500}, {0, 1500}};
    setitimer(ITIMER_REAL, &every, 0);
    for (uint64_t last = 0;;) {
        struct timespec t = {0, 2000000};
        nanosleep(&t, 0);
        if (alarms != last) { last = alarms; round_done(me); }
    }
    return unused;
}

static void *seven(void *unused) { (void)unused; return (void *)7; }
static void *bears(void *unused) {
    const int me = 11;
    begin(me, ALL);
    for (;;) {
        pthread_t thread;
        void *result = 0;
        int status = 0;
        EXPECT(me, pthread_create(&thread, 0, seven, 0) == 0, errno);
        pthread_join(thread, &result);
        EXPECT(me, result == (void *)7, result);
        pid_t child = fork();
        if (child == 0) _exit(7);
        pid_t ended = waitpid(-1, &status, 0);
        EXPECT(me, ended == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, ended);
        /* No child that it did not make itself is ever seen. (A wait for clones too, __WALL, may see one for a moment after
         * an engine was killed.) */
        ended = waitpid(-1, &status, WNOHANG);
        EXPECT(me, ended == -1 && errno == ECHILD, ended);
        round_done(me);
        nap(me, 3000);
    }
    return unused;
}

int main(int count, char **words) {
    void *(*all[THREADS])(void *) = {0,     spins,   writes,   reads,    polls,   waits_for_nobody,
                                     suspends, signals, receives, watches, is_alarmed, bears};
    struct epoll_event in = {.events = EPOLLIN};
    struct sigaction action = {0};
    pthread_t thread;
    int file = count > 1 ? open(words[1], O_RDWR) : -1;
    state = mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (state == MAP_FAILED) return 1;
    close(file);
    if (pipe(numbers) || pipe(never) || socketpair(AF_UNIX, SOCK_DGRAM, 0, pairs)) return 1;
    if (count > 2) prctl(PR_SET_CHILD_SUBREAPER, 1);
    event = eventfd(0, 0);
    watcher = epoll_create1(0);
    epoll_ctl(watcher, EPOLL_CTL_ADD, event, &in);
    action.sa_handler = on_usr2;
    sigaction(SIGUSR2, &action, 0);
    action.sa_handler = on_alarm;
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    sigaction(SIGALRM, &action, 0);
    action.sa_sigaction = on_queued;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(SIGRTMIN + 1, &action, 0);
    begin(0, ALL);
    for (int i = 1; i < THREADS; i++) pthread_create(&thread, 0, all[i], 0);
    for (;;) {
        int adopts = 0;
        EXPECT(0, !prctl(PR_GET_CHILD_SUBREAPER, &adopts), errno);
        state->adopts = adopts;
        nap(0, 2000);
        round_done(0);
    }
}
