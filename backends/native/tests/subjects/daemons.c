// Adopts orphans: a daemon that left by forking twice, with a child of its own, and a process whose parent has ended.
// Says every 20 ms whether all work and it has seen nobody else. "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DAEMON, ITS_CHILD, ORPHAN, OTHER, ALL };
static volatile struct { pid_t pid, session, group, parent; long rounds; } *shared;
static volatile sig_atomic_t told;

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static void on_child(int s) { (void)s; told++; }

static void work(int who)
{
    shared[who].session = getsid(0);
    shared[who].group = getpgid(0);
    shared[who].pid = getpid();
    for (;;) {
        usleep(1000);
        shared[who].parent = getppid();
        shared[who].rounds++;
    }
}

static void leave(int who, int apart)
{
    pid_t middle = fork();
    if (!middle) {
        if (apart)
            setsid();
        if (!fork()) {
            // Nobody knows its old parent any more.
            while (getppid() != shared[ALL].pid)
                usleep(1000);
            if (who == DAEMON && !fork())
                work(ITS_CHILD);
            if (who == OTHER)
                setpgid(0, 0);
            work(who);
        }
        _exit(0);
    }
    waitpid(middle, 0, 0);
}

static int look(void)
{
    int bad = 0;
    for (int who = 0; who < ALL; who++) {
        long before = shared[who].rounds;
        for (int tries = 0; tries < 3000 && shared[who].rounds < before + 3; tries++)
            usleep(10000);
        pid_t pid = shared[who].pid;
        CHECK("works", shared[who].rounds >= before + 3);
        CHECK("session", getsid(pid) == shared[who].session && getpgid(pid) == shared[who].group);
        CHECK("parent", shared[who].parent == (who == ITS_CHILD ? shared[DAEMON].pid : getpid()));
    }
    CHECK("sessions", shared[DAEMON].session != getsid(0) && shared[OTHER].session != shared[DAEMON].session && shared[ORPHAN].session == getsid(0));
    CHECK("groups", shared[DAEMON].group == shared[DAEMON].session && shared[OTHER].group == shared[OTHER].pid);
    int adopts = 0;
    CHECK("adopts", !prctl(PR_GET_CHILD_SUBREAPER, &adopts) && adopts == 1);
    siginfo_t info = { 0 };
    CHECK("nobody ended", !waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) && !info.si_pid && !told);
    return bad;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared[ALL].pid = getpid();
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        return 3;
    leave(DAEMON, 1);
    leave(ORPHAN, 0);
    leave(OTHER, 1);
    for (int who = 0; who < ALL; who++)
        while (!shared[who].rounds)
            usleep(1000);
    signal(SIGCHLD, on_child);
    puts("ready");
    for (;;) {
        if (!look())
            puts("ok");
        usleep(20000);
    }
}
