/* Memory that is written, protected, moved and given up without a pause. "ok" again and again as long as every page holds
 * what it has to, else "bad WHAT". */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, PAGES = 256, REGIONS = 48 };
static char *region[REGIONS];
static uint32_t expected[REGIONS][PAGES];
static uint64_t seed = 88172645463325252ull;

static uint64_t next(uint64_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % below;
}

/* Zero is a page of zeros. */
static void set(int i, int page, uint32_t value)
{
    memset(region[i] + (size_t)page * PAGE, 0, PAGE);
    memcpy(region[i] + (size_t)page * PAGE + 8 * (value % 500), &value, 4);
    expected[i][page] = value;
}

static int holds(int i, int page)
{
    uint32_t value;
    memcpy(&value, region[i] + (size_t)page * PAGE + 8 * (expected[i][page] % 500), 4);
    return value == expected[i][page];
}

static char *made(void)
{
    /* Apart from the others, with room behind it. */
    char *at = mmap(0, 3 * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(at, PAGES * PAGE, PROT_READ | PROT_WRITE);
    return at;
}

static const char *change(void)
{
    int i = next(REGIONS), page = next(PAGES);
    if (!holds(i, page))
        return "page";
    /* One half of them stays where it is. */
    switch (i % 2 ? 3 + next(1000) : next(1000)) {
    case 0:
        if (mprotect(region[i], PAGES * PAGE, PROT_READ) || !holds(i, PAGES - 1 - page)
            || mprotect(region[i], PAGES * PAGE, PROT_READ | PROT_WRITE))
            return "protection";
        break;
    case 1:
        /* One half becomes anew. */
        if (mmap(region[i], PAGES / 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
            != region[i])
            return "half";
        memset(expected[i], 0, sizeof expected[i] / 2);
        break;
    case 2: {
        char *old = region[i];
        region[i] = made();
        for (int p = 0; p < PAGES; p++)
            memcpy(region[i] + (size_t)p * PAGE, old + (size_t)p * PAGE, PAGE);
        munmap(old, PAGES * PAGE);
        break;
    }
    default:
        set(i, page, next(3) ? (uint32_t)next(1u << 31) : 0);
    }
    return 0;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < REGIONS; i++) {
        region[i] = made();
        for (int page = 0; page < PAGES; page++)
            set(i, page, (uint32_t)next(1u << 31));
    }
    puts("ready");
    for (;;) {
        struct timespec moment = { 0, 1000000 };
        for (int n = 0; n < 500; n++) {
            const char *bad = change();
            if (bad) {
                printf("bad %s\n", bad);
                return 1;
            }
        }
        for (int i = 0; i < REGIONS; i++)
            for (int page = 0; page < PAGES; page++)
                if (!holds(i, page)) {
                    printf("bad page %d of %d\n", page, i);
                    return 1;
                }
        puts("ok");
        nanosleep(&moment, 0);
    }
}
