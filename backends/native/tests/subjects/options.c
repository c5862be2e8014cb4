// Options of sockets of every kind, set to what nobody has by default. Each SIGUSR1: "ok", or "bad LEVEL NAME" for one that
// is no longer as it was. What this kernel does not know is left out.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { NETLINK = 270, JOIN = 1, GROUPS = 9 };
enum { LISTENS, LISTENS_SIX, SENDS, SENDS_SIX, ASKS, UNBOUND, PAIR, KINDS };
static const struct { int kind, level, name, value; } options[] = {
    { LISTENS, IPPROTO_TCP, 2, 900 },      // the largest segment
    { LISTENS, IPPROTO_TCP, 7, 3 },        // attempts to connect
    { LISTENS, IPPROTO_TCP, 8, 17 },       // how long an end lingers
    { LISTENS, IPPROTO_TCP, 25, 16384 },   // how much may wait unsent
    { LISTENS, IPPROTO_TCP, 27, 1 },       // keeps the first packet
    { LISTENS, IPPROTO_IP, 15, 1 },        // to addresses that are not there
    { LISTENS, IPPROTO_IP, 21, 9 },        // the least time to live
    { LISTENS_SIX, IPPROTO_IPV6, 73, 9 },  // and hops
    { SENDS, IPPROTO_IP, 10, 2 },          // no fragments
    { SENDS, IPPROTO_IP, 12, 1 },          // tells the time to live
    { SENDS, IPPROTO_IP, 13, 1 },          // and the type of service
    { SENDS, IPPROTO_IP, 20, 1 },          // and the first destination
    { SENDS, IPPROTO_UDP, 103, 1200 },     // many datagrams at once
    { SENDS, IPPROTO_UDP, 104, 1 },        // also when received
    { SENDS, SOL_SOCKET, SO_RXQ_OVFL, 1 }, // tells what was dropped
    { SENDS, SOL_SOCKET, SO_TIMESTAMPING, 24 },
    { SENDS_SIX, IPPROTO_IPV6, 23, 2 },
    { SENDS_SIX, IPPROTO_IPV6, 51, 1 },
    { SENDS_SIX, IPPROTO_IPV6, 62, 1 },
    { SENDS_SIX, IPPROTO_IPV6, 66, 1 },
    { SENDS_SIX, IPPROTO_IP, 13, 1 },      // of an address of version 4 in one of 6
    { ASKS, NETLINK, 5, 1 },               // says nothing of lost messages
    { ASKS, NETLINK, 10, 1 },
    { ASKS, NETLINK, 11, 1 },
    { ASKS, NETLINK, 12, 1 },
    { PAIR, SOL_SOCKET, 76, 1 },           // hands out pidfds
};
enum { COUNT = sizeof options / sizeof *options };
static int sockets[KINDS], known[COUNT];
static unsigned groups[2][4];

static int get(int at)
{
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(sockets[options[at].kind], options[at].level, options[at].name, &value, &size) ? -1 : value;
}

static void joined(int kind, unsigned *all)
{
    socklen_t size = 4 * sizeof *all;
    memset(all, 0, size);
    getsockopt(sockets[kind], NETLINK, GROUPS, all, &size);
}

static void look(void)
{
    int bad = 0, reuse = 1;
    unsigned now[4];
    socklen_t size = sizeof reuse;
    for (int i = 0; i < COUNT; i++)
        if (known[i] != -1 && get(i) != known[i])
            printf("bad %d %d: %d, not %d\n", options[i].level, options[i].name, get(i), known[i]), bad = 1;
    for (int i = 0; i < 2; i++) {
        joined(i ? UNBOUND : ASKS, now);
        if (memcmp(now, groups[i], sizeof now))
            printf("bad groups of %d: %x %x, not %x %x\n", i, now[0], now[1], groups[i][0], groups[i][1]), bad = 1;
    }
    char name[16] = "";
    size = sizeof name;
    if (getsockopt(sockets[LISTENS], IPPROTO_TCP, 13, name, &size) || strcmp(name, "reno"))
        printf("bad congestion %s\n", name), bad = 1;
    if (!bad)
        puts("ok");
}

int main(void)
{
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    int pair[2];
    sigset_t set;
    setvbuf(stdout, 0, _IOLBF, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    sockets[LISTENS] = socket(AF_INET, SOCK_STREAM, 0);
    sockets[LISTENS_SIX] = socket(AF_INET6, SOCK_STREAM, 0);
    sockets[SENDS] = socket(AF_INET, SOCK_DGRAM, 0);
    sockets[SENDS_SIX] = socket(AF_INET6, SOCK_DGRAM, 0);
    sockets[ASKS] = socket(AF_NETLINK, SOCK_RAW, 0);
    sockets[UNBOUND] = socket(AF_NETLINK, SOCK_RAW, 0);
    struct { unsigned short family, none; unsigned id, groups; } own = { AF_NETLINK };
    if (bind(sockets[ASKS], (void *)&own, sizeof own) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        return 3;
    sockets[PAIR] = pair[1];
    for (int i = 0; i < COUNT; i++) {
        int value = options[i].value;
        if (setsockopt(sockets[options[i].kind], options[i].level, options[i].name, &value, sizeof value))
            printf("not here: %d %d\n", options[i].level, options[i].name);
        known[i] = get(i);
    }
    // Beyond 32 there is no room in an address.
    for (int group = 3; group < 40; group += 30)
        setsockopt(sockets[ASKS], NETLINK, JOIN, &group, sizeof group);
    setsockopt(sockets[UNBOUND], NETLINK, JOIN, &(int){ 1 }, sizeof(int));
    joined(ASKS, groups[0]);
    joined(UNBOUND, groups[1]);
    if (setsockopt(sockets[LISTENS], IPPROTO_TCP, 13, "reno", 4) || !groups[1][0])
        return 4;
    if (bind(sockets[LISTENS], (void *)&four, sizeof four) || listen(sockets[LISTENS], 3))
        return 5;
    if (bind(sockets[SENDS], (void *)&four, sizeof four))
        return 6;
    // Where there is no IPv6 they stay unbound.
    if (!bind(sockets[LISTENS_SIX], (void *)&six, sizeof six))
        listen(sockets[LISTENS_SIX], 3);
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        look();
    }
}
