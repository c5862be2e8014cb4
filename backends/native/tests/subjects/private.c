// A file, mapped privately, of which some pages were written: many in a row, few, the last one, some that can only be read
// now. What was not written shows the file, what was written shows it no more. "ok" or "bad PAGE", again and again.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L
#define PAGES 256

static const int written[][2] = {{0, 9}, {12, 60}, {61, 62}, {70, 72}, {100, 200}, {255, 256}};

static int is_written(int page)
{
    for (unsigned i = 0; i < sizeof written / sizeof *written; i++)
        if (page >= written[i][0] && page < written[i][1])
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    char path[4096];
    unsigned char block[PAGE];
    setvbuf(stdout, 0, _IOLBF, 0);
    snprintf(path, sizeof path, "%s/private", argc > 1 ? argv[1] : ".");
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int page = 0; page < PAGES; page++) {
        memset(block, page, PAGE);
        if (write(file, block, PAGE) != PAGE)
            return 1;
    }
    unsigned char *all = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    close(file);
    if (all == MAP_FAILED)
        return 1;
    for (int page = 0; page < PAGES; page++)
        if (is_written(page))
            memset(all + page * PAGE, page + 128, PAGE);
    mprotect(all + 150 * PAGE, 20 * PAGE, PROT_READ);
    puts("ready");
    for (unsigned turn = 1;; turn++) {
        int bad = -1;
        for (int page = 0; page < PAGES; page++)
            for (int at = 8; at < PAGE; at++)
                if (all[page * PAGE + at] != (unsigned char)(is_written(page) ? page + 128 : page))
                    bad = page;
        // A few of them go on being written, so that a later generation has pieces of several files.
        memcpy(all + 3 * PAGE, &turn, sizeof turn);
        memcpy(all + 110 * PAGE, &turn, sizeof turn);
        if (bad < 0)
            puts("ok");
        else
            printf("bad page %d\n", bad);
        usleep(5000);
    }
}
