/* Sends up what a program left in a folder, when nothing of it is alive any more; see protocol.h for the bytes.
 *
 * Links are never followed, and nothing is opened that is no file or folder. The host trusts none of it, and bounds all of
 * it again.
 */
#ifndef CRUCIBLE_LEFT_H
#define CRUCIBLE_LEFT_H

#include "protocol.h"
#include <asm/stat.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

static struct left_message {
    struct output_frame frame; /* room for it, where what goes up is multiplexed */
    struct left_head head;
    u8 data[MAX_FRAME - sizeof(struct left_head)];
} left_message;

/* Defined by who includes this: sends `left_message` up, from its head on. */
static void send_left(void);

struct entry {
    u64 inode, offset;
    unsigned short length;
    u8 type;
    char name[];
};

static char left_path[MAX_LEFT_PATH + 1];
static u64 left_bytes, left_files; /* how many more may go up */
static u64 left_rest[2];           /* what LEFT_END tells */
static u64 seen;

static void send_up(u32 kind, u64 length)
{
    left_message.head.kind = kind;
    left_message.head.length = (u32)length;
    send_left();
}

static void send_name(u64 size, u64 path_length)
{
    memcpy(left_message.data, &size, sizeof size);
    memcpy(left_message.data + sizeof size, left_path, path_length);
    send_up(LEFT_NAME, sizeof size + path_length);
}

static void send_file(int folder, const char *name, u64 path_length)
{
    struct stat file;
    u64 room = sizeof left_message.data;
    long got = 0, fd = SYS(openat, folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || SYS(fstat, fd, &file) || !S_ISREG(file.st_mode)) { /* another by now: only where there is no sandbox */
        left_rest[0]++;
        SYS(close, fd);
        return;
    }
    send_name((u64)file.st_size, path_length);
    while (left_bytes && (got = SYS(read, fd, left_message.data, left_bytes < room ? left_bytes : room)) > 0) {
        left_bytes -= (u64)got;
        send_up(LEFT_DATA, (u64)got);
    }
    SYS(close, fd);
    send_up(got < 0 ? LEFT_ABANDONED : LEFT_DONE, 0);
    left_rest[0] += got < 0;
    left_files--;
}

static void send_folder(int folder, u64 path_length, int depth);

static void send_entry(int folder, const char *name, u64 path_length, int depth)
{
    u64 length = text_length(name);
    struct stat found;
    long below;
    if (path_length + length > MAX_LEFT_PATH || SYS(newfstatat, folder, name, &found, AT_SYMLINK_NOFOLLOW)) {
        left_rest[0]++;
        return;
    }
    memcpy(left_path + path_length, name, length);
    path_length += length;
    if (S_ISREG(found.st_mode) && left_files) {
        send_file(folder, name, path_length);
        return;
    }
    if (!S_ISDIR(found.st_mode) || depth == MAX_DEPTH || path_length == MAX_LEFT_PATH) {
        left_rest[0]++;
        return;
    }
    below = SYS(openat, folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0) {
        left_rest[0]++;
        return;
    }
    left_path[path_length] = '/';
    send_folder((int)below, path_length + 1, depth + 1);
    SYS(close, below);
}

static void send_folder(int folder, u64 path_length, int depth)
{
    u8 entries[2048] __attribute__((aligned(8)));
    long got;
    while ((got = SYS(getdents64, folder, entries, sizeof entries)) > 0) {
        long at = 0;
        while (at < got) {
            struct entry *entry = (struct entry *)(entries + at);
            const char *name = entry->name;
            at += entry->length;
            if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
                continue;
            if (seen++ >= MAX_SEEN) {
                left_rest[1] = 1;
                return;
            }
            send_entry(folder, name, path_length, depth);
        }
    }
    left_rest[0] += got < 0;
}

/* Sends all that is below the folder at `path`; anything else there is not followed and counts as one. */
static void send_all(const char *path, u64 files, u64 bytes)
{
    long folder = SYS(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    left_files = files;
    left_bytes = bytes;
    if (folder >= 0)
        send_folder((int)folder, 0, 1);
    else
        left_rest[0]++;
    SYS(close, folder);
    memcpy(left_message.data, left_rest, sizeof left_rest);
    send_up(LEFT_END, sizeof left_rest);
}

static int is_there(const char *path)
{
    struct stat found;
    return !SYS(newfstatat, AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW);
}

#endif
