/* objects: holds one of everything that can be saved, with contents, says `ready`, and at SIGUSR1 looks whether all is as
 * it was and says `well` or what is not. Built and used by tests/capture.rs. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NEED(condition) do { if (!(condition)) { printf("line %d: %s: %s\n", __LINE__, #condition, strerror(errno)); fflush(stdout); _exit(1); } } while (0)

static volatile sig_atomic_t asked;
static void on_usr1(int s) { (void)s; asked = 1; }
static void on_other(int s) { (void)s; }
static int same(int fd, const char *text, size_t n) {
    char got[256] = {0};
    return read(fd, got, sizeof got) == (ssize_t)n && !memcmp(got, text, n);
}

int main(void) {
    /* Descriptor numbers are fixed by the order: 3 and 4, and so on. */
    int pipes[2], stream[2], packets[2], master, slave;
    NEED(!pipe(pipes) && fcntl(pipes[1], F_SETPIPE_SZ, 8192) == 8192);          /* 3 4 */
    NEED(write(pipes[1], "in the pipe", 11) == 11);
    NEED(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream));                         /* 5 6 */
    NEED(send(stream[0], "one ", 4, 0) == 4 && send(stream[0], "two", 3, 0) == 3);
    NEED(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets));      /* 7 8 */
    NEED(send(packets[0], "first", 5, 0) == 5 && send(packets[0], "2nd", 3, 0) == 3);

    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "listens"};
    int on = 1;
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);                  /* 9 */
    NEED(!setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &on, 4) && !setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &on, 4));
    NEED(!bind(tcp, (void *)&four, sizeof four) && !listen(tcp, 7));
    int tcp6 = socket(AF_INET6, SOCK_STREAM, 0);                                /* 10 */
    NEED(!setsockopt(tcp6, IPPROTO_IPV6, 26, &on, 4) && !bind(tcp6, (void *)&six, sizeof six) && !listen(tcp6, 5));
    int udp = socket(AF_INET, SOCK_DGRAM, 0);                                   /* 11 */
    NEED(!bind(udp, (void *)&four, sizeof four));
    unlink("listens");
    int unix_listens = socket(AF_UNIX, SOCK_STREAM, 0);                         /* 12 */
    NEED(!bind(unix_listens, (void *)&name, sizeof name) && !listen(unix_listens, 3));
    int client = socket(AF_UNIX, SOCK_STREAM, 0);                               /* 13 */
    NEED(!connect(client, (void *)&name, sizeof name));
    int accepted = accept(unix_listens, 0, 0);                                  /* 14 */
    NEED(accepted == 14 && send(client, "hello", 5, 0) == 5 && !shutdown(client, SHUT_WR));

    int event = eventfd(5, EFD_SEMAPHORE);                                      /* 15 */
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);                             /* 16 */
    struct itimerspec every = {{7, 0}, {1000, 0}};
    NEED(!timerfd_settime(timer, 0, &every, 0));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGRTMIN + 3);
    NEED(!sigprocmask(SIG_BLOCK, &set, 0));
    int signals = signalfd(-1, &set, SFD_NONBLOCK);                             /* 17 */
    int watcher = epoll_create1(EPOLL_CLOEXEC);                                 /* 18 */
    struct epoll_event in = {.events = EPOLLIN | EPOLLET, .data.u64 = 0xdeadbeefcafe};
    NEED(!epoll_ctl(watcher, EPOLL_CTL_ADD, tcp, &in));
    int own = syscall(SYS_pidfd_open, getpid(), 0);                             /* 19 */

    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0640);                 /* 20 */
    NEED(log == 20 && write(log, "line\n", 5) == 5 && !flock(log, LOCK_EX));
    int twice = dup(log), again = open("log", O_RDONLY);                        /* 21 22 */
    NEED(lseek(again, 3, SEEK_SET) == 3);
    struct flock range = {.l_type = F_RDLCK, .l_start = 1, .l_len = 2};
    NEED(!fcntl(again, F_SETLK, &range));
    int gone = open("gone", O_RDWR | O_CREAT, 0600);                            /* 23 */
    NEED(write(gone, "deleted", 7) == 7 && ftruncate(gone, 100000) == 0 && !unlink("gone"));
    int directory = open("/", O_RDONLY | O_DIRECTORY), null = open("/dev/zero", O_RDWR); /* 24 25 */
    int memory = memfd_create("mine", MFD_ALLOW_SEALING);                       /* 26 */
    NEED(!ftruncate(memory, 8192) && !fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK));
    char *seen = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    strcpy(seen + 4096, "memfd");
    char *shared = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(shared + 12345, "shared");
    NEED(!openpty(&master, &slave, 0, 0, 0));                                   /* 27 28 */
    NEED(!mkfifo("fifo", 0600) || errno == EEXIST);
    int fifo = open("fifo", O_RDWR);                                            /* 29 */
    NEED(fifo == 29 && write(fifo, "in the fifo", 11) == 11);
    NEED(own && directory && null && udp && slave && twice);

    pid_t child = fork();
    if (child == 0) for (;;) pause();
    pid_t dead = fork();
    if (dead == 0) _exit(3);
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    NEED(!sigaction(SIGUSR1, &action, 0));
    action.sa_handler = on_other;
    action.sa_flags = SA_NODEFER;
    sigaddset(&action.sa_mask, SIGHUP);
    NEED(!sigaction(SIGRTMIN + 3, &action, 0));
    /* A signal that waits for the process, and one for this thread. */
    NEED(!sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 77}));
    NEED(!syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
    timer_t posix;
    struct sigevent told = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 9};
    NEED(!timer_create(CLOCK_MONOTONIC, &told, &posix) && !timer_settime(posix, 0, &every, 0));
    siginfo_t info;
    NEED(!waitid(P_PID, dead, &info, WEXITED | WNOWAIT));
    umask(027);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct timespec nap = {0, 10000000};
        nanosleep(&nap, 0);
        if (!asked) continue;
        asked = 0;
        uint64_t count;
        struct signalfd_siginfo waits;
        NEED(same(pipes[0], "in the pipe", 11) && write(pipes[1], "in the pipe", 11) == 11);
        NEED(same(stream[1], "one two", 7) && send(stream[0], "one two", 7, 0) == 7);
        NEED(same(packets[1], "first", 5) && same(packets[1], "2nd", 3));
        NEED(send(packets[0], "first", 5, 0) == 5 && send(packets[0], "2nd", 3, 0) == 3);
        NEED(recv(accepted, &count, 5, MSG_PEEK) == 5 && !memcmp(&count, "hello", 5));
        NEED(same(fifo, "in the fifo", 11) && write(fifo, "in the fifo", 11) == 11);
        NEED(read(event, &count, 8) == 8 && count == 1 && write(event, &count, 8) == 8);
        NEED(lseek(log, 0, SEEK_CUR) == 5 && lseek(again, 0, SEEK_CUR) == 3);
        NEED(pread(gone, &count, 7, 0) == 7 && !memcmp(&count, "deleted", 7));
        NEED(!strcmp(seen + 4096, "memfd") && !strcmp(shared + 12345, "shared"));
        NEED(!timerfd_gettime(timer, &every) && every.it_value.tv_sec > 900 && every.it_interval.tv_sec == 7);
        NEED(read(signals, &waits, sizeof waits) == sizeof waits && waits.ssi_signo == SIGUSR2);
        NEED(read(signals, &waits, sizeof waits) == sizeof waits && waits.ssi_int == 77);
        NEED(!sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 77}));
        NEED(!syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
        NEED(kill(child, 0) == 0 && !waitid(P_PID, dead, &info, WEXITED | WNOWAIT) && info.si_status == 3);
        printf("well\n");
        fflush(stdout);
    }
}
