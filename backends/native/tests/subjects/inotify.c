// Watches by inotify, with numbers that have gaps: on directories, on a file, by a link's own name. "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static int instance, directory, file, late, links;
static char base[4096], events[4096];

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static const char *in(const char *name) { static char path[2][8192]; static int n; n = !n; snprintf(path[n], sizeof *path, "%s/%s", base, name); return path[n]; }
static int add(const char *name, unsigned mask) { return inotify_add_watch(instance, in(name), mask); }

/* The next event is this one; others of the same reading follow. */
static int told(int wd, unsigned mask, const char *name)
{
    ssize_t n = read(instance, events, sizeof events);
    struct inotify_event *event = (void *)events;
    return n >= (ssize_t)sizeof *event && event->wd == wd && event->mask == mask && (!name || !strcmp(event->name, name));
}

static int look(void)
{
    int bad = 0, fd;
    CHECK("nothing waits", read(instance, events, sizeof events) < 0 && errno == EAGAIN);
    CHECK("create", (fd = open(in("deep/er/made"), O_CREAT | O_RDWR, 0600)) >= 0 && !close(fd) && told(directory, IN_CREATE, "made"));
    CHECK("delete", !unlink(in("deep/er/made")) && told(directory, IN_DELETE, "made"));
    CHECK("modify", (fd = open(in("file"), O_WRONLY)) >= 0 && write(fd, "x", 1) == 1 && !close(fd) && told(file, IN_MODIFY, 0));
    CHECK("late", (fd = open(in("late"), O_RDONLY)) >= 0 && !close(fd) && told(late, IN_OPEN | IN_ISDIR, 0));
    CHECK("link", !lchown(in("link"), getuid(), -1) && told(links, IN_ATTRIB, 0));
    CHECK("the same", add("deep/er", IN_CREATE | IN_DELETE) == directory);
    CHECK("nothing more", read(instance, events, sizeof events) < 0 && errno == EAGAIN);
    return bad;
}

int main(int count, char **words)
{
    if (count < 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    snprintf(base, sizeof base, "%s", words[1]);
    mkdir(in("deep"), 0700), mkdir(in("deep/er"), 0700), mkdir(in("late"), 0700), unlink(in("link"));
    if ((instance = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) < 0 || close(open(in("file"), O_CREAT | O_RDWR, 0600)) || symlink("nowhere", in("link")))
        return 3;
    directory = add("deep/er", IN_CREATE | IN_DELETE);
    for (int i = 0; i < 300; i++)
        if (inotify_rm_watch(instance, add("late", IN_OPEN)) || read(instance, events, sizeof events) < 0)
            return 4;
    file = add("file", IN_MODIFY | IN_EXCL_UNLINK);
    late = add("late", IN_OPEN);
    links = add("link", IN_ATTRIB | IN_DONT_FOLLOW);
    if (directory != 1 || file < 302 || late != file + 1 || links < 0)
        return 5;
    puts("ready");
    for (;;) {
        if (!look())
            puts("ok");
        usleep(100000);
    }
}
