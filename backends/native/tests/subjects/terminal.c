// A session of its own on a terminal that this process holds the other side of, with a foreground and a background group.
// "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static void talk(void)
{
    char line[64];
    pid_t behind = fork();
    if (!behind) {
        setpgid(0, 0);
        for (;;)
            pause();
    }
    setpgid(behind, behind);
    while (fgets(line, sizeof line, stdin)) {
        FILE *terminal = fopen("/dev/tty", "r");
        int fine = terminal && tcgetpgrp(0) == getpgrp() && getsid(0) == getpid() && getpgid(behind) == behind
            && getsid(behind) == getpid() && isatty(0);
        if (terminal)
            fclose(terminal);
        printf("%s %s", fine ? "fine" : "lost", line);
        fflush(stdout);
    }
    _exit(0);
}

int main(void)
{
    struct winsize size = { 33, 77, 0, 0 };
    int leader;
    pid_t child = forkpty(&leader, 0, 0, &size);
    if (!child)
        talk();
    struct termios how;
    tcgetattr(leader, &how);
    how.c_lflag &= ~ECHO;
    tcsetattr(leader, TCSANOW, &how);
    setvbuf(stdout, 0, _IOLBF, 0);
    usleep(100000);
    puts("ready");
    for (int round = 0;; round++) {
        char said[64], got[256] = "", wanted[64];
        int bad = 0;
        usleep(200000);
        int length = snprintf(said, sizeof said, "round-%d\n", round);
        snprintf(wanted, sizeof wanted, "fine round-%d\r\n", round);
        if (write(leader, said, length) != length)
            bad = 1;
        size_t have = 0;
        while (!bad && !strchr(got, '\n')) {
            struct pollfd in = { leader, POLLIN, 0 };
            ssize_t n = poll(&in, 1, 5000) == 1 ? read(leader, got + have, sizeof got - 1 - have) : 0;
            if (n <= 0)
                break;
            got[have += n] = 0;
        }
        if (strcmp(got, wanted))
            bad = 1, printf("bad answer %s", got);
        struct winsize now;
        struct termios same;
        if (ioctl(leader, TIOCGWINSZ, &now) || now.ws_row != 33 || now.ws_col != 77)
            bad = 1, puts("bad size");
        if (tcgetattr(leader, &same) || same.c_lflag & ECHO)
            bad = 1, puts("bad settings");
        if (tcgetpgrp(leader) != child)
            bad = 1, puts("bad foreground");
        if (!bad)
            puts("ok");
    }
}
