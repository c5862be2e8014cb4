/* Says that it is up and waits; with an argument it ends with that exit code. Built static, against musl and so on. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    puts("up");
    fflush(stdout);
    if (argc > 1)
        return atoi(argv[1]);
    for (;;)
        pause();
}
