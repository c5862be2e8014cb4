// Messages without content, and more of them than small buffers hold now. Each SIGUSR1: "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LARGE = 30000, MANY = 5 };
static int packets[2], datagrams[2], stream[2], empty[2];
static char block[LARGE], got[LARGE + 1];

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static int size(int fd, int name) { int value = 0; socklen_t length = sizeof value; getsockopt(fd, SOL_SOCKET, name, &value, &length); return value; }
static int shrink(int fd) { int least = 4000; return setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof least); }
static int whole(int fd, ssize_t wanted) { return recv(fd, got, sizeof got, MSG_DONTWAIT) == wanted && (!wanted || got[0] == 'x'); }

static void fill(void)
{
    int room = 200000;
    for (int i = 0; i < 2; i++) {
        setsockopt(packets[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
        setsockopt(datagrams[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
        setsockopt(stream[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    int fine = send(empty[0], "", 0, 0) == 0 && send(empty[0], "x", 1, 0) == 1;
    fine &= send(packets[0], "", 0, 0) == 0;
    for (int i = 0; i < MANY; i++)
        fine &= send(packets[0], block, LARGE, 0) == LARGE && send(datagrams[0], block, LARGE, 0) == LARGE && send(stream[0], block, LARGE, 0) == LARGE;
    if (!fine || shrink(packets[0]) || shrink(datagrams[0]) || shrink(stream[0]))
        exit(3);
}

static int look(void)
{
    int bad = 0;
    CHECK("sizes", size(packets[0], SO_SNDBUF) == size(stream[0], SO_SNDBUF) && size(stream[0], SO_SNDBUF) < 10000 && size(stream[1], SO_SNDBUF) == 400000);
    CHECK("sizes of the kernel", size(empty[0], 72) == 0 && size(stream[0], 72) == 1);
    CHECK("only empty", whole(empty[1], 0) && whole(empty[1], 1));
    CHECK("empty first", whole(packets[1], 0));
    for (int i = 0; i < MANY; i++) {
        CHECK("packets", whole(packets[1], LARGE));
        CHECK("datagrams", whole(datagrams[1], LARGE));
        CHECK("stream", recv(stream[1], got, LARGE, MSG_WAITALL | MSG_DONTWAIT) == LARGE);
    }
    CHECK("nothing more", recv(packets[1], got, 1, MSG_DONTWAIT) < 0 && recv(datagrams[1], got, 1, MSG_DONTWAIT) < 0 && recv(stream[1], got, 1, MSG_DONTWAIT) < 0);
    fill();
    return bad;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    memset(block, 'x', sizeof block);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) || socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) || socketpair(AF_UNIX, SOCK_STREAM, 0, stream) || socketpair(AF_UNIX, SOCK_DGRAM, 0, empty))
        return 3;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    fill();
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        if (!look())
            puts("ok");
    }
}
