/* Makes files below the folder $THROTTLED a slow store, for a process with this library in LD_PRELOAD.

   Each read and each write of such a file takes its bytes / 20 MB/s longer, one after the other. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t line = PTHREAD_MUTEX_INITIALIZER;

static ssize_t wait_for(int fd, ssize_t bytes) {
  char link[64], path[PATH_MAX];
  const char *folder = getenv("THROTTLED");
  if (bytes <= 0 || !folder) return bytes;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return bytes;
  path[length] = 0;
  if (strncmp(path, folder, strlen(folder))) return bytes;
  double seconds = bytes / 20e6;
  struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  pthread_mutex_lock(&line);
  nanosleep(&time, NULL);
  pthread_mutex_unlock(&line);
  return bytes;
}

#define THROTTLE(name, types, names)                          \
  ssize_t name types {                                        \
    static ssize_t(*real) types;                              \
    if (!real) real = (ssize_t(*) types)dlsym(RTLD_NEXT, #name); \
    return wait_for(fd, real names);                          \
  }

THROTTLE(read, (int fd, void *to, size_t n), (fd, to, n))
THROTTLE(write, (int fd, const void *from, size_t n), (fd, from, n))
THROTTLE(pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
THROTTLE(pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
THROTTLE(pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
THROTTLE(preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at))
THROTTLE(readv, (int fd, const struct iovec *to, int n), (fd, to, n))
THROTTLE(writev, (int fd, const struct iovec *from, int n), (fd, from, n))
