// Files that have no name: of tmpfile(), of O_TMPFILE to be given one later, and one that had one and was opened
// without following links. Each SIGUSR1: "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MANY = 8 };
static int files[MANY], next, bad, gone;
static FILE *stream;
static char name[4096];

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static void look(void)
{
    char text[64] = "", path[64];
    struct stat about;
    bad = 0;
    CHECK("stream", fprintf(stream, "%d", next) == 1 && !fflush(stream) && pread(fileno(stream), text, 64, 0) == next + 1 && text[next] == '0' + next);
    for (int i = next; i < MANY; i++) {
        CHECK("content", pread(files[i], text, 64, 0) == 8 && !memcmp(text, "nameless", 8));
        CHECK("place", lseek(files[i], 0, SEEK_CUR) == 8 && !fstat(files[i], &about) && !about.st_nlink && (about.st_mode & 0777) == 0640);
    }
    CHECK("deleted", pread(gone, text, 64, 0) == 4 && !memcmp(text, "gone", 4));
    snprintf(path, sizeof path, "/proc/self/fd/%d", files[next]);
    CHECK("name", !linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) && !stat(name, &about) && about.st_size == 8);
    CHECK("end", !unlink(name) && !close(files[next++]));
    puts(bad ? "" : "ok");
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    snprintf(name, sizeof name, "%s/named", words[1]);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    stream = tmpfile();
    if (!stream)
        return 3;
    umask(0);
    for (int i = 0; i < MANY; i++)
        if ((files[i] = open(words[1], O_TMPFILE | O_RDWR, 0640)) < 0 || write(files[i], "nameless", 8) != 8)
            return 3;
    if ((gone = open(name, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR, 0600)) < 0 || write(gone, "gone", 4) != 4 || unlink(name))
        return 3;
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        look();
    }
}
