/* What the executor and the sandbox's init say to each other. All numbers are little-endian.
 * The other side of it is `crucible_executor/init_protocol.py`.
 *
 * Down (fd 0), at most once, an interpreter to start before its program is there: a frame_head with HOLD_MAGIC, no files and
 *   no stdin · argc strings · envc strings · string name of its program's file · u32 FRAME_END
 *   It waits in reading that file, and ready is reported again; argv, environment and limits of the program are then these.
 * Then, once:  frame_head · argc strings · envc strings · nfiles files · stdin bytes · u32 FRAME_END
 *   string = u32 length, bytes without NUL        file = string path, u64 length, bytes
 *   After that the descriptor stays open for as long as the program may live: its end ends everything at once. Any byte
 *   ends the program and all that it started, and then all goes on as if it had ended by itself.
 * Up (fd 3): `report` records, in the order ready (again when an interpreter waits), then started, ended, left, gone, or at
 *   any point refused. left comes only when the program left something at `out`. After it, before gone, what it left:
 *   left_heads, each with `length` bytes: (LEFT_NAME, LEFT_DATA any number of times, LEFT_WHOLE or LEFT_ABANDONED) for each
 *   file, then LEFT_END.
 *
 * Multiplexed (`crucible-init multiplexed`), for an engine that passes on only fds 0, 1 and 2: everything goes up fd 1 as
 * `output_frame`s, of which only the init can write any: its reports, and what it read of the program's two pipes. All
 * output comes before GONE, and after GONE the init waits for the end of fd 0, so that the counters of its cgroup can be
 * read while there is one.
 */
#ifndef CRUCIBLE_PROTOCOL_H
#define CRUCIBLE_PROTOCOL_H

#include "sys.h"

#define FRAME_MAGIC 0x3254494e49555243UL /* "CRUINIT2" */
#define HOLD_MAGIC 0x32444c4f48555243UL  /* "CRUHOLD2" */
#define FRAME_END 0x21444e45U            /* "END!" */
#define REPORT_MAGIC 0x54525052U         /* "RPRT" */

#define CONTROL_FD 0
#define MULTIPLEX_FD 1
#define REPORT_FD 3
#define STDOUT_FD 4 /* becomes the program's 1: the engine's own 1 and 2 carry its diagnostics, not the program's bytes */
#define STDERR_FD 5 /* becomes the program's 2 */
#define PROGRAM_ID 65534 /* uid and gid of the program */

#define MAX_STRINGS 4096           /* argv and environment together */
#define MAX_STRING_BYTES (1 << 20) /* of them, with their NULs */
#define MAX_FILES 10000
#define MAX_PATH 4095
#define MAX_NAME 255
#define MAX_HELD 61440             /* of the file that an interpreter waits for: a pipe takes it whole */
#define MAX_CONTENT (1UL << 32) /* of one file, and of stdin; the disk and memory limits are smaller */

#define UNCHANGED 0xffffffffU

struct frame_head {
    u64 magic;
    u32 argc;
    u32 envc;
    u32 nfiles;
    u32 processes;  /* RLIMIT_NPROC, or UNCHANGED where the sandbox's cgroup bounds them */
    u32 open_files; /* RLIMIT_NOFILE */
    u32 left_files; /* how many of the files that the program leaves at `out` go up at most; 0: nobody wants any */
    u64 left_bytes; /* how many bytes of them together; the file that would go beyond is cut, of those after it goes up none */
    u64 stdin_bytes;
};

enum report_kind {
    READY = 1, /* waiting for its program */
    STARTED,   /* the program was executed */
    ENDED,     /* the program ended: `a` is enum ended_how, `b` the exit code or signal */
    GONE,      /* every other process was killed and reaped: `a` is how many; CPU times of all are final */
    REFUSED,   /* nothing ran: `a` is enum stage, `b` the errno, or as the stage says */
    LEFT,      /* every other process was killed and reaped, and the program left something at `out`: it follows */
};

enum ended_how { EXITED = 0, SIGNALLED = 1 };

enum stage {
    AT_FRAME = 1,
    AT_FILES,
    AT_STDIN,
    AT_FORK,
    AT_RLIMITS,
    AT_PRIVILEGES,
    AT_WORKSPACE,
    AT_EXECUTE,
    AT_HOLD, /* an interpreter ended before its program came: `b` is its wait status */
};

enum full_disk { WORKSPACE_FULL = 1, TMP_FULL = 2, WORKSPACE_INODES = 4, TMP_INODES = 8 };

struct report {
    u32 magic;
    u32 kind;
    u32 a;
    u32 b;
    u64 user_us;    /* CPU time of the program and of what was reaped so far */
    u64 system_us;
    u64 max_rss_kib;
    u64 full;       /* bits of enum full_disk, as of this report */
    u64 zero[2];
};

enum channel { REPORTS = 0, OUT = 1, ERR = 2 };

struct output_frame {
    u32 channel; /* enum channel */
    u32 length;  /* of what follows, 1 to MAX_FRAME */
};

#define MAX_FRAME 65536

enum left {
    LEFT_NAME = 1,      /* a file begins: u64 its size, then its path below `out`, 1 to MAX_LEFT_PATH bytes */
    LEFT_DATA = 2,      /* the next bytes of it */
    LEFT_DONE = 3,      /* nothing more of it goes up; no bytes */
    LEFT_ABANDONED = 4, /* it cannot be read and does not count; no bytes */
    LEFT_END = 5,       /* no more files: u64 how much else was there, and is no folder; u64 1 when not all was looked at */
};

struct left_head {
    u32 kind; /* enum left */
    u32 length;
};

#define MAX_LEFT_PATH 255
#define MAX_SEEN 10000 /* files and folders below `out` */
#define MAX_DEPTH 16   /* folders in each other, `out` included */

#endif
