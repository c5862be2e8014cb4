// Shared memory with holes, seals, mappings that may become writable and such that may not, a file that is written
// through its mapping, memory barriers. Each SIGUSR1: "ok", or "bad WHAT".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, FAR = 8 << 20, MEMBARRIER_PRIVATE = 1 << 3, MEMBARRIER_PRIVATE_SYNC = 1 << 5, MEMBARRIER_PRIVATE_RSEQ = 1 << 7 };
static int sealed, future, untouchable;
static char *shared, *sealed_map, *future_map, *read_only, *never;

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static int barrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }
static char *map(int fd, int prot) { char *at = mmap(0, 3 * PAGE, prot, MAP_SHARED, fd, 0); return at == MAP_FAILED ? 0 : at; }

static int memfd(const char *text)
{
    int fd = memfd_create("kept", MFD_ALLOW_SEALING);
    return ftruncate(fd, 3 * PAGE) || pwrite(fd, text, strlen(text), 0) < 0 ? -1 : fd;
}

static int writable(char *at)
{
    if (mprotect(at, PAGE, PROT_READ | PROT_WRITE))
        return 0;
    at[1]++;
    return !mprotect(at, PAGE, PROT_READ);
}

static int look(void)
{
    int bad = 0;
    struct stat about;
    CHECK("shared", !strcmp(shared, "kept") && !strcmp(shared + FAR, "end"));
    CHECK("hole", !shared[PAGE] && !shared[FAR - PAGE] && !shared[FAR / 2]);
    CHECK("seals", fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK) && !strcmp(sealed_map, "sealed"));
    CHECK("sealed", write(sealed, "x", 1) < 0 && errno == EPERM && mprotect(sealed_map, PAGE, PROT_READ | PROT_WRITE) < 0);
    CHECK("future seals", fcntl(future, F_GET_SEALS) == (F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) && !map(future, PROT_WRITE));
    CHECK("future", !strcmp(future_map + 1, "uture") && ++future_map[0]);
    CHECK("no seals", fcntl(untouchable, F_GET_SEALS) == F_SEAL_SEAL);
    CHECK("mode", !fstat(sealed, &about) && (about.st_mode & 0777) == 0640);
    CHECK("may be written", writable(read_only));
    CHECK("may not be written", !writable(never) && errno == EACCES);
    CHECK("the same file", never[1] == read_only[1]);
    CHECK("barriers", !barrier(MEMBARRIER_PRIVATE) && !barrier(MEMBARRIER_PRIVATE_RSEQ) && barrier(MEMBARRIER_PRIVATE_SYNC) < 0 && errno == EPERM);
    int registered = barrier(1 << 9);
    CHECK("registered", registered == 0x110 || (registered < 0 && errno == EINVAL));
    return bad;
}

int main(int count, char **words)
{
    char path[4096];
    if (count < 2)
        return 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    snprintf(path, sizeof path, "%s/shared", words[1]);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, FAR + PAGE) || (shared = mmap(0, FAR + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
        return 3;
    strcpy(shared, "kept");
    strcpy(shared + FAR, "end");
    snprintf(path, sizeof path, "/proc/self/fd/%d", sealed = memfd("sealed"));
    if (fchmod(sealed, 0640) || !(sealed_map = map(open(path, O_RDONLY), PROT_READ)) || fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK))
        return 4;
    if (!(future_map = map(future = memfd("future"), PROT_READ | PROT_WRITE)) || fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL))
        return 5;
    untouchable = memfd_create("untouchable", 0);
    fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, 3 * PAGE) || !(read_only = map(fd, PROT_READ)) || !(never = map(open("mapped", O_RDONLY), PROT_READ)))
        return 6;
    if (barrier(1 << 4) || barrier(1 << 8))
        return 7;
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        if (!look())
            puts("ok");
    }
}
