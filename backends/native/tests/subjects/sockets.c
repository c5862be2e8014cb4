// Unix sockets of every kind with messages under way, TCP and UDP sockets, a FIFO. "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int listener, client, server, near, near_client, near_server, first, second, third, bound, talker, orphan, half[2], hidden, tcp, tcp6, udp, udp_peer, fifo_read, fifo_write, path_fd;
static char name[256], other[256], moved[256];

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

/* Both sizes as the kernel tells them, and who chose them. */
static int sizes(int fd, int sending, int receiving, int chosen)
{
    int value[3], names[] = { SO_SNDBUF, SO_RCVBUF, SO_BUF_LOCK };
    for (int i = 0; i < 3; i++) {
        socklen_t length = sizeof *value;
        if (getsockopt(fd, SOL_SOCKET, names[i], value + i, &length))
            return 0;
    }
    return (!sending || value[0] == sending) && (!receiving || value[1] == receiving) && value[2] == chosen;
}
static int choose(int fd, int name, int value) { return setsockopt(fd, SOL_SOCKET, name, &value, sizeof value); }

static struct sockaddr_un at(const char *path) { struct sockaddr_un a = { .sun_family = AF_UNIX }; strncpy(a.sun_path, path, sizeof a.sun_path - 1); return a; }
static int make(int type, const char *path)
{
    int fd = socket(AF_UNIX, type, 0);
    if (path) {
        struct sockaddr_un a = at(path);
        unlink(path);
        if (bind(fd, (void *)&a, sizeof a))
            exit(3);
    }
    return fd;
}
static int to(int fd, const char *path) { struct sockaddr_un a = at(path); return connect(fd, (void *)&a, sizeof a); }

static int look(void)
{
    int bad = 0, value, pair[2];
    char text[64] = "";
    socklen_t length = sizeof value;
    CHECK("accepted", recv(server, text, 64, 0) == 5 && !memcmp(text, "hello", 5) && send(client, "hello", 5, 0) == 5);
    CHECK("answer", recv(client, text, 64, MSG_DONTWAIT) == 3 && send(server, "yes", 3, 0) == 3);
    struct sockaddr_un address = { 0 };
    socklen_t size = sizeof address;
    CHECK("name", !getsockname(server, (void *)&address, &size) && !strcmp(address.sun_path, name));
    int late = make(SOCK_STREAM, 0), got;
    CHECK("listening", !to(late, name) && (got = accept(listener, 0, 0)) >= 0 && !close(got));
    close(late);
    CHECK("datagrams", recv(bound, text, 64, 0) == 3 && !memcmp(text, "one", 3) && recv(bound, text, 64, 0) == 5);
    CHECK("datagrams on", send(talker, "one", 3, 0) == 3 && send(talker, "later", 5, 0) == 5);
    CHECK("orphan", recv(orphan, text, 64, MSG_PEEK) == 4 && !memcmp(text, "last", 4) && send(orphan, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    CHECK("half", recv(half[0], text, 64, 0) == 0 && send(half[0], "x", 1, 0) == 1 && recv(half[1], text, 64, 0) == 1);
    CHECK("relative", !to(late = make(SOCK_STREAM, 0), "near") && (got = accept(near, 0, 0)) >= 0 && !close(got) && !close(late));
    CHECK("relative pair", recv(near_server, text, 64, 0) == 4 && send(near_client, "near", 4, 0) == 4);
    CHECK("moved", !to(late = make(SOCK_STREAM, 0), moved) && (got = accept(first, 0, 0)) >= 0 && !close(got) && !close(late));
    CHECK("moved pair", recv(third, text, 64, 0) == 5 && send(second, "moved", 5, 0) == 5);
    struct stat about;
    CHECK("who may connect", !stat(name, &about) && (about.st_mode & 07777) == 0746);
    size = sizeof address;
    CHECK("relative name", !getsockname(near, (void *)&address, &size) && !strcmp(address.sun_path, "near"));
    CHECK("hidden", (late = make(SOCK_SEQPACKET, 0)) >= 0);
    struct sockaddr_un abstract = { AF_UNIX, "\0stasis-hidden" };
    abstract.sun_path[20] = (char)getpid();
    CHECK("hidden", !connect(late, (void *)&abstract, sizeof(sa_family_t) + 21) && (got = accept(hidden, 0, 0)) >= 0 && !close(got));
    close(late);
    CHECK("tcp", !getsockopt(tcp, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) && value);
    CHECK("no delay", !getsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &value, &length) && value);
    CHECK("reuse", !getsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &value, &length) && !value);
    CHECK("non blocking", fcntl(tcp, F_GETFL) & O_NONBLOCK);
    if (tcp6 >= 0)
        CHECK("six only", !getsockopt(tcp6, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length) && value);
    struct sockaddr_in mine;
    size = sizeof mine;
    CHECK("udp", !getsockname(udp, (void *)&mine, &size) && mine.sin_port && send(udp_peer, "x", 1, 0) == 1 && recv(udp, text, 64, 0) == 1);
    CHECK("fifo", read(fifo_read, text, 64) == 5 && !memcmp(text, "queue", 5) && write(fifo_write, text, 5) == 5);
    CHECK("path only", !fstat(path_fd, &about) && S_ISDIR(about.st_mode) && fcntl(path_fd, F_GETFL) & O_PATH);
    CHECK("buffer sizes", sizes(udp, 100000, 60000, 3) && sizes(half[0], 0, 50000, 2) && sizes(half[1], 40000, 0, 1));
    CHECK("sizes of the kernel", sizes(tcp, 0, 0, 0) && sizes(udp_peer, 0, 0, 0) && sizes(client, 0, 0, 0));
    CHECK("pairs still work", !socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !close(pair[0]) && !close(pair[1]));
    return bad;
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    int pair[2], on = 1;
    snprintf(name, sizeof name, "%s/listener", words[1]);
    snprintf(other, sizeof other, "%s/datagrams", words[1]);
    listener = make(SOCK_STREAM, name);
    if (listen(listener, 5) || chmod(name, 0746))
        return 3;
    client = make(SOCK_STREAM, 0);
    if (to(client, name) || (server = accept(listener, 0, 0)) < 0 || send(client, "hello", 5, 0) != 5 || send(server, "yes", 3, 0) != 3)
        return 3;
    // As those do who want to be found only once they listen.
    snprintf(moved, sizeof moved, "%s/first", words[1]);
    listen(first = make(SOCK_STREAM, moved), 5);
    snprintf(other, sizeof other, "%s/moved", words[1]);
    if (rename(moved, other) || to(second = make(SOCK_STREAM, 0), strcpy(moved, other)) || (third = accept(first, 0, 0)) < 0 || send(second, "moved", 5, 0) != 5)
        return 3;
    snprintf(other, sizeof other, "%s/datagrams", words[1]);
    // A name that begins where the program works.
    if (chdir(words[1]) || listen(near = make(SOCK_STREAM, "near"), 5) || to(near_client = make(SOCK_STREAM, "near-client"), "near"))
        return 3;
    if ((near_server = accept(near, 0, 0)) < 0 || send(near_client, "near", 4, 0) != 4)
        return 3;
    bound = make(SOCK_DGRAM, other);
    talker = make(SOCK_DGRAM, 0);
    if (to(talker, other) || send(talker, "one", 3, 0) != 3 || send(talker, "later", 5, 0) != 5 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || send(pair[0], "last", 4, 0) != 4)
        return 3;
    orphan = pair[1];
    close(pair[0]);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, half) || shutdown(half[1], SHUT_WR))
        return 3;
    if (choose(half[0], SO_RCVBUF, 25000) || choose(half[1], SO_SNDBUF, 20000))
        return 3;
    struct sockaddr_un abstract = { AF_UNIX, "\0stasis-hidden" };
    abstract.sun_path[20] = (char)getpid();
    hidden = make(SOCK_SEQPACKET, 0);
    if (bind(hidden, (void *)&abstract, sizeof(sa_family_t) + 21) || listen(hidden, 2))
        return 3;
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(tcp, (void *)&here, sizeof here) || listen(tcp, 7))
        return 3;
    tcp6 = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    setsockopt(tcp6, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(tcp6, (void *)&six, sizeof six) || listen(tcp6, 1))
        tcp6 = -1;
    udp = socket(AF_INET, SOCK_DGRAM, 0);
    udp_peer = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t size = sizeof here;
    if (bind(udp, (void *)&here, sizeof here) || getsockname(udp, (void *)&here, &size) || connect(udp_peer, (void *)&here, size))
        return 3;
    if (choose(udp, SO_SNDBUF, 50000) || choose(udp, SO_RCVBUF, 30000))
        return 3;
    snprintf(other, sizeof other, "%s/fifo", words[1]);
    unlink(other);
    if (mkfifo(other, 0600) || (fifo_read = open(other, O_RDONLY | O_NONBLOCK)) < 0 || (fifo_write = open(other, O_WRONLY)) < 0 || write(fifo_write, "queue", 5) != 5)
        return 3;
    path_fd = open(words[1], O_PATH);
    puts("ready");
    for (;;) {
        if (!look())
            puts("ok");
        usleep(200000);
    }
}
