// Holds one of nearly everything that a process can have, and says every 20 ms whether all of it is as it was.
// Standard output gets "ready", then "ok N" or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int event_fd, epoll_fd, epoll_pipe[2], timer_fd, memory_fd, gone_fd, twin[2], full_pipe[2], pair[2], ask[2], answer[2];
static char *memory, *shared, *holes, *readonly, *stack;
static pid_t child, zombie;
static timer_t timers[3];
static volatile sig_atomic_t alarms, ticks, on_alternate;
static volatile long thread_ticks[3];
static __thread long mine;
static pthread_key_t key;

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); fflush(stdout); bad = 1; } } while (0)

static void on_real(int s) { (void)s; alarms++; }
static void on_timer(int s, siginfo_t *info, void *context)
{
    char here;
    (void)s, (void)context;
    if (info->si_value.sival_int == 42)
        ticks++;
    on_alternate = &here >= stack && &here < stack + 65536;
}

static void *run(void *argument)
{
    long number = (long)argument;
    char name[16];
    sigset_t leaders;
    sigemptyset(&leaders);
    sigaddset(&leaders, SIGRTMIN + 3);
    pthread_sigmask(SIG_BLOCK, &leaders, 0);
    snprintf(name, sizeof name, "thread-%ld", number);
    prctl(PR_SET_NAME, name);
    pthread_setspecific(key, argument);
    mine = number * 1000000;
    for (;;) {
        usleep(2000);
        mine++;
        thread_ticks[number]++;
        if (mine != number * 1000000 + thread_ticks[number] || pthread_getspecific(key) != argument)
            puts("bad thread memory"), fflush(stdout);
    }
    return 0;
}

static void serve(void)
{
    char byte;
    close(ask[1]);
    while (read(ask[0], &byte, 1) == 1) {
        shared[4096] = shared[0] + 1;
        if (write(answer[1], &byte, 1) != 1)
            break;
    }
    _exit(0);
}

static void files(const char *directory)
{
    char name[4096];
    snprintf(name, sizeof name, "%s/gone", directory);
    gone_fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640);
    if (pwrite(gone_fd, "kept", 4, 10000) != 4)
        exit(3);
    unlink(name);
    snprintf(name, sizeof name, "%s/twin", directory);
    twin[0] = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    twin[1] = dup(twin[0]);
    if (ftruncate(twin[0], 1 << 20) || lseek(twin[0], 1234, SEEK_SET) != 1234 || flock(twin[0], LOCK_EX))
        exit(3);
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 50 };
    if (fcntl(twin[0], F_SETLK, &lock))
        exit(3);
}

static void memories(void)
{
    memory_fd = memfd_create("subject", 0);
    if (ftruncate(memory_fd, 8192))
        exit(3);
    memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    strcpy(memory, "memfd");
    shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared[0] = 7;
    holes = mmap(0, 256 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    strcpy(holes + (200 << 20), "far");
    readonly = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(readonly, "fixed");
    mprotect(readonly, 4096, PROT_READ);
    mprotect(readonly + 4096, 4096, PROT_NONE);
}

static void signals(void)
{
    stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t alternate = { .ss_sp = stack, .ss_size = 65536 };
    sigaltstack(&alternate, 0);
    struct sigaction action = { .sa_handler = on_real, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &action, 0);
    struct sigaction timed = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK };
    sigaction(SIGRTMIN + 3, &timed, 0);
    signal(SIGUSR1, SIG_IGN);
    struct itimerval every = { { 0, 10000 }, { 0, 10000 } };
    setitimer(ITIMER_REAL, &every, 0);
    for (int i = 0; i < 3; i++) {
        struct sigevent how = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 42 };
        if (timer_create(CLOCK_MONOTONIC, &how, &timers[i]))
            exit(3);
    }
    timer_delete(timers[1]);
    struct itimerspec each = { { 0, 10000000 }, { 0, 10000000 } };
    timer_settime(timers[2], 0, &each, 0);
    sigset_t waiting;
    sigemptyset(&waiting);
    sigaddset(&waiting, SIGUSR2);
    sigaddset(&waiting, SIGRTMIN + 7);
    sigprocmask(SIG_BLOCK, &waiting, 0);
    kill(getpid(), SIGUSR2);
    for (int i = 0; i < 3; i++)
        sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = 100 + i });
}

static void descriptors(void)
{
    event_fd = eventfd(5, EFD_NONBLOCK);
    if (pipe(epoll_pipe) || pipe2(full_pipe, O_NONBLOCK) || pipe(ask) || pipe(answer))
        exit(3);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event watch = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, epoll_pipe[0], &watch);
    fcntl(full_pipe[1], F_SETPIPE_SZ, 8192);
    if (write(full_pipe[1], "under way", 9) != 9 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
        exit(3);
    if (write(pair[0], "one", 3) != 3 || write(pair[0], "second", 6) != 6)
        exit(3);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec each = { { 0, 5000000 }, { 0, 5000000 } };
    timerfd_settime(timer_fd, 0, &each, 0);
}

static int queued(void)
{
    // Looked at and put back.
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 7);
    struct timespec now = { 0, 0 };
    siginfo_t info;
    int sum = 0;
    for (int i = 0; i < 3; i++) {
        if (sigtimedwait(&one, &info, &now) < 0)
            return -1;
        sum = sum * 1000 + info.si_value.sival_int;
    }
    for (int i = 0; i < 3; i++)
        sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = 100 + i });
    return sum;
}

static int objects(void)
{
    int bad = 0;
    char text[64] = "";
    eventfd_t count;
    CHECK("eventfd", !eventfd_read(event_fd, &count) && count == 5 && !eventfd_write(event_fd, 5));
    struct epoll_event got = { 0 };
    CHECK("epoll", write(epoll_pipe[1], "x", 1) == 1 && epoll_wait(epoll_fd, &got, 1, 1000) == 1 && got.data.u64 == 0x1122334455667788);
    CHECK("epoll pipe", read(epoll_pipe[0], text, 1) == 1);
    CHECK("pipe", read(full_pipe[0], text, 64) == 9 && !memcmp(text, "under way", 9) && write(full_pipe[1], text, 9) == 9);
    CHECK("pipe size", fcntl(full_pipe[1], F_GETPIPE_SZ) == 8192 && fcntl(full_pipe[0], F_GETFL) & O_NONBLOCK);
    CHECK("messages", read(pair[1], text, 64) == 3 && read(pair[1], text, 64) == 6 && !memcmp(text, "second", 6));
    CHECK("messages back", write(pair[0], "one", 3) == 3 && write(pair[0], "second", 6) == 6);
    CHECK("deleted file", pread(gone_fd, text, 4, 10000) == 4 && !memcmp(text, "kept", 4));
    struct stat about;
    CHECK("mode", !fstat(gone_fd, &about) && (about.st_mode & 07777) == 0640 && about.st_nlink == 0);
    CHECK("one offset", lseek(twin[0], 1, SEEK_CUR) == lseek(twin[1], 0, SEEK_CUR) && lseek(twin[0], -1, SEEK_CUR) == 1234);
    uint64_t fired;
    ssize_t n = read(timer_fd, &fired, 8);
    CHECK("timerfd", n == 8 || errno == EAGAIN);
    CHECK("close on exec", fcntl(epoll_fd, F_GETFD) == FD_CLOEXEC && fcntl(event_fd, F_GETFD) == 0);
    return bad;
}

static int self(int rounds)
{
    int bad = 0;
    char text[64] = "";
    CHECK("memfd", !strcmp(memory, "memfd") && pread(memory_fd, text, 6, 0) == 6 && !strcmp(text, "memfd"));
    CHECK("holes", !strcmp(holes + (200 << 20), "far") && !holes[100 << 20]);
    CHECK("read only", !strcmp(readonly, "fixed"));
    shared[0] = rounds;
    CHECK("child", write(ask[1], "x", 1) == 1 && read(answer[0], text, 1) == 1 && shared[4096] == (char)(rounds + 1));
    CHECK("session", getsid(child) == getsid(0) && getpgid(child) == child && getsid(0) == getpid());
    siginfo_t info = { 0 };
    CHECK("zombie", !waitid(P_PID, zombie, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_status == 7);
    sigset_t waits;
    sigpending(&waits);
    CHECK("waiting signal", sigismember(&waits, SIGUSR2));
    CHECK("queued signals", queued() == 100101102);
    CHECK("ignored signal", signal(SIGUSR1, SIG_IGN) == SIG_IGN);
    struct itimerspec left;
    CHECK("timer", !timer_gettime(timers[2], &left) && left.it_interval.tv_nsec == 10000000);
    CHECK("deleted timer", syscall(SYS_timer_gettime, 1, &left) < 0);
    prctl(PR_GET_NAME, text);
    CHECK("name", !strcmp(text, "subject"));
    mode_t mask = umask(0);
    CHECK("umask", mask == 027);
    umask(mask);
    struct rlimit limit;
    CHECK("limit", !getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur == 777);
    CHECK("nice", getpriority(PRIO_PROCESS, 0) == 13);
    CHECK("directory", getcwd(text, 64) && !strcmp(text, "/usr"));
    free(malloc(300000));
    CHECK("break", sbrk(4096) != (void *)-1);
    return bad;
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    prctl(PR_SET_NAME, "subject");
    umask(027);
    if (chdir("/usr"))
        return 3;
    // More than the tests may have themselves.
    setpriority(PRIO_PROCESS, 0, 13);
    files(words[1]);
    memories();
    descriptors();
    if (!(zombie = fork()))
        _exit(7);
    siginfo_t info;
    waitid(P_PID, zombie, &info, WEXITED | WNOWAIT);
    if (!(child = fork()))
        setpgid(0, 0), serve();
    setpgid(child, child);
    signals();
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 777, 777 });
    pthread_key_create(&key, 0);
    pthread_t thread;
    for (long i = 1; i < 3; i++)
        pthread_create(&thread, 0, run, (void *)i);
    puts("ready");
    for (int rounds = 0;; rounds = (rounds + 1) % 100) {
        long before[] = { thread_ticks[1], thread_ticks[2], alarms, ticks };
        struct timespec pause = { 0, 20000000 };
        while (nanosleep(&pause, &pause))
            ;
        int bad = objects() + self(rounds);
        // On a busy machine it takes longer; what has stopped never moves.
        int moves = 0;
        for (int tries = 0; tries < 1000 && !moves; tries++) {
            usleep(10000);
            moves = thread_ticks[1] > before[0] && thread_ticks[2] > before[1] && alarms > before[2] && ticks > before[3];
        }
        CHECK("first thread", thread_ticks[1] > before[0]);
        CHECK("second thread", thread_ticks[2] > before[1]);
        CHECK("alarms", alarms > before[2]);
        CHECK("posix timer", ticks > before[3]);
        CHECK("signal stack", on_alternate);
        if (!bad)
            printf("ok %d\n", rounds);
    }
}
