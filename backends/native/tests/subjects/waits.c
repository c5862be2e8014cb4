// Ten threads, each in one call that waits. SIGUSR1 lets the main thread end all waits; each has to end as if nothing had
// happened: "ok", or "bad WHICH".
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READ, POLL, POLL_LIMIT, EPOLL, SELECT, FUTEX, FUTEX_LIMIT, RECEIVE, CHILD, SIGNAL, SLEEP, COUNT };
static int pipes[COUNT][2], pair[2], word, limited, results[COUNT], errors[COUNT], begun;
static sem_t done;
static pid_t child;

static void *wait_for(void *argument)
{
    int which = (int)(intptr_t)argument, rc = -2;
    char byte;
    struct pollfd poll_fd = { pipes[which][0], POLLIN, 0 };
    struct timespec long_time = { 1000, 0 };
    sigset_t one;
    __atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
    switch (which) {
    case READ: rc = read(pipes[which][0], &byte, 1); break;
    case POLL: rc = poll(&poll_fd, 1, -1); break;
    case POLL_LIMIT: rc = poll(&poll_fd, 1, 1000000); break;
    case EPOLL: {
        int epoll = epoll_create1(0);
        struct epoll_event event = { .events = EPOLLIN };
        epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[which][0], &event);
        rc = epoll_wait(epoll, &event, 1, -1);
        break;
    }
    case SELECT: {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(pipes[which][0], &set);
        rc = select(pipes[which][0] + 1, &set, 0, 0, 0);
        break;
    }
    case FUTEX:
        while (!__atomic_load_n(&word, __ATOMIC_SEQ_CST))
            rc = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
        rc = rc == 0 ? 1 : rc;
        break;
    case FUTEX_LIMIT:
        // The number of the call is not in the code here: after a capture that it outlived and a restart it gives EINTR.
        do
            rc = syscall(SYS_futex, &limited, FUTEX_WAIT_PRIVATE, 0, &long_time, 0, 0);
        while (rc < 0 && errno == EINTR);
        rc = rc == 0 ? 1 : rc;
        break;
    case RECEIVE: rc = recv(pair[0], &byte, 1, 0); break;
    case CHILD: rc = waitpid(child, 0, 0) == child; break;
    case SIGNAL:
        sigemptyset(&one);
        sigaddset(&one, SIGUSR2);
        rc = sigwaitinfo(&one, 0) == SIGUSR2;
        break;
    case SLEEP: {
        struct timespec left = { 4, 0 };
        rc = nanosleep(&left, 0) == 0;
        break;
    }
    }
    results[which] = rc;
    errors[which] = errno;
    sem_post(&done);
    return 0;
}

int main(void)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || sem_init(&done, 0, 0))
        return 3;
    if (!(child = fork()))
        for (;;)
            pause();
    for (int i = 0; i < COUNT; i++) {
        pthread_t thread;
        if (pipe(pipes[i]) || pthread_create(&thread, 0, wait_for, (void *)(intptr_t)i))
            return 3;
    }
    while (__atomic_load_n(&begun, __ATOMIC_SEQ_CST) < COUNT)
        usleep(1000);
    usleep(100000);
    puts("ready");
    sigset_t go;
    sigemptyset(&go);
    sigaddset(&go, SIGUSR1);
    if (sigwaitinfo(&go, 0) != SIGUSR1)
        puts("bad main");
    for (int i = 0; i < COUNT; i++)
        if (results[i])
            printf("bad %d ended early: %d, errno %d\n", i, results[i], errors[i]);
    for (int i = 0; i < COUNT; i++)
        if (write(pipes[i][1], "x", 1) != 1)
            puts("bad pipe");
    word = limited = 1;
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    syscall(SYS_futex, &limited, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    if (write(pair[1], "x", 1) != 1)
        puts("bad pair");
    kill(child, SIGKILL);
    kill(getpid(), SIGUSR2);
    for (int i = 0; i < COUNT; i++)
        sem_wait(&done);
    int bad = 0;
    for (int i = 0; i < COUNT; i++)
        if (results[i] != 1)
            bad = 1, printf("bad %d: %d, errno %d\n", i, results[i], errors[i]);
    puts(bad ? "bad" : "ok");
    for (;;)
        pause();
}
