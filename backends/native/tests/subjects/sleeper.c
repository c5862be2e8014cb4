/* Two threads that sleep a little again and again; the second says so as long as both do. */
#include <pthread.h>
#include <stdio.h>
#include <time.h>

static volatile long rounds;

static void a_little(void)
{
    struct timespec time = { 0, 20000000 };
    nanosleep(&time, 0);
}

static void *tell(void *unused)
{
    for (long seen = 0;; a_little())
        if (rounds > seen + 4) {
            seen = rounds;
            puts("ok");
        }
    return unused;
}

int main(void)
{
    pthread_t thread;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (pthread_create(&thread, 0, tell, 0))
        return 3;
    puts("ready");
    for (;; rounds++)
        a_little();
}
