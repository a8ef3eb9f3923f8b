/* Stands before the C library of a process (LD_PRELOAD): of all that is written to regular files, but for the
   standard streams, so many bytes find room as the file $FVIT_LEFT says, a long; then the disk is full. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long *left;

__attribute__((constructor)) static void open_left(void) {
    int file = open(getenv("FVIT_LEFT"), O_RDWR);
    left = mmap(NULL, sizeof *left, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
}

/* How much of this finds room. */
static size_t taken(int file, size_t size) {
    struct stat found;
    if (file <= STDERR_FILENO || fstat(file, &found) || !S_ISREG(found.st_mode)) return size;
    long before = __atomic_load_n(left, __ATOMIC_RELAXED);
    size_t taken;
    do taken = (long)size < before ? size : (size_t)before;
    while (!__atomic_compare_exchange_n(left, &before, before - (long)taken, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return taken;
}

static ssize_t full(void) {
    errno = ENOSPC;
    return -1;
}

ssize_t write(int file, const void *data, size_t size) {
    size_t room = taken(file, size);
    return size && !room ? full() : syscall(SYS_write, file, data, room);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    size_t room = taken(file, size);
    return size && !room ? full() : syscall(SYS_pwrite64, file, data, room, place);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place) { return pwrite64(file, data, size, place); }
