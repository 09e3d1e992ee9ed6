"""Results and errors of every call, as tables in the manner of pjdfstest, natively and through the mount."""

import errno
import os
from pathlib import Path

import pytest

from tests.filesystem.posix_calls import ACCESS_CONTROL_LIST, check

KINDS = "fdlpscb"
SHOWN = {"f": "-"}


@pytest.mark.parametrize("call", [
    "create {}", "mkdir {}", "mkfifo {}", "mknod {} f 0644", "bind {}", "symlink target {}", "link f {}",
    "rename f {}", "open {} CREAT|RDWR",
])  # fmt: skip
def test_new_name(area: Path, call: str) -> None:
    def new(path: str) -> str:
        return call.format(path)

    check(f"""
        mkdir d
        create f
        chmod f 0666
        symlink loop loop
        mkdir closed 0700
        mkdir readonly 0755
        mkdir open 0777
        {new("f/x")} -> ENOTDIR
        {new("d/none/x")} -> ENOENT
        {new("d/../f/x")} -> ENOTDIR
        {new("loop/x")} -> ELOOP
        65534:65534 {new("closed/x")} -> EACCES
        65534:65534 {new("readonly/x")} -> EACCES
    """)


@pytest.mark.parametrize("call", [
    "create {}", "mkdir {}", "mkfifo {}", "mknod {} f 0644", "symlink target {}", "link f {}", "rename f {}",
    "open {} RDONLY", "unlink {}", "rmdir {}", "chmod {} 0644", "chown {} 1 1", "truncate {} 1", "utimes {} 1 1",
    "lstat {} mode", "readlink {}", "setxattr {} user.a b", "getxattr {} user.a", "link {} y", "rename {} y",
])  # fmt: skip
def test_name_lengths(area: Path, call: str) -> None:
    check(f"create f\n{call.format('{n256}')} -> ENAMETOOLONG\n{call.format('f/x')} -> ENOTDIR")
    check(f"{call.format('{p4096}x')} -> ENAMETOOLONG")


@pytest.mark.parametrize("call", [
    "create {n255}", "mkdir {n255}", "mkfifo {n255}", "symlink target {n255}", "link f {n255}", "rename f {n255}",
])  # fmt: skip
def test_longest_name(area: Path, call: str) -> None:
    check(f"create f\n{call}\nlist . -> {'n' * 255 if call.startswith('rename') else 'f,' + 'n' * 255}")
    check("remove {n255}\nlstat {n255} mode -> ENOENT")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [
    "create {}", "mkdir {}", "mkfifo {}", "mknod {} f 0644", "symlink target {}", "link other {}",
    "renameat2 other {} NOREPLACE", "open {} CREAT|EXCL|RDWR",
])  # fmt: skip
def test_existing_name(area: Path, call: str, kind: str) -> None:
    check(f"create other\nmake {kind} x\n{call.format('x')} -> EEXIST\nlstat x kind -> {SHOWN.get(kind, kind)}")


@pytest.mark.parametrize("call", [
    "open {} RDONLY", "unlink {}", "rmdir {}", "chmod {} 0644", "chown {} 1 1", "truncate {} 1", "utimes {} 1 1",
    "lstat {} mode", "readlink {}", "getxattr {} user.a", "setxattr {} user.a b", "link {} y", "rename {} y",
    "renameat2 {} y EXCHANGE",
])  # fmt: skip
def test_missing_name(area: Path, call: str) -> None:
    check(f"mkdir d\nmake f y\n{call.format('none')} -> ENOENT\n{call.format('d/none')} -> ENOENT")
    check(f"{call.format('none/x')} -> ENOENT\nsymlink loop loop\n{call.format('loop/x')} -> ELOOP")
    check(f"make f x\nmkdir closed 0700\nmake f closed/x\n65534:65534 {call.format('closed/x')} -> EACCES")


@pytest.mark.parametrize("call", [
    "create {}", "mkdir {} 0755", "mkfifo {}", "mknod {} f 0644", "bind {}", "symlink target {}",
])  # fmt: skip
def test_owner_of_new_names(area: Path, call: str) -> None:
    new = call.format("x")
    check(f"""
        34:34 {new}
        lstat x uid,gid -> 34,34
        remove x
        34:100,34 {new}
        lstat x uid,gid -> 34,100
        remove x
        {new}
        lstat x uid,gid -> 0,0
        remove x
        0:7 {new}
        lstat x uid,gid -> 0,7
        remove x
        mkdir setgid
        chown setgid 1 50
        chmod setgid 02777
        34:34 {call.format("setgid/x")}
        lstat setgid/x uid,gid -> 34,50
        0:0 {call.format("setgid/y")}
        lstat setgid/y uid,gid -> 0,50
        mkdir grouped
        chown grouped 1 60
        chmod grouped 0770
        34:34 {call.format("grouped/x")} -> EACCES
        34:34,60 {call.format("grouped/x")}
        lstat grouped/x uid,gid -> 34,34
    """)


def test_modes_of_new_names(area: Path) -> None:
    check("""
        mkdir setgid
        chown setgid 1 50
        chmod setgid 02777
        34:34 mkdir setgid/d 0755
        lstat setgid/d mode -> 2755
        34:34 mkdir setgid/d/e 0700
        lstat setgid/d/e mode,gid -> 2700,50
        34:34 create setgid/f 02755    # not his group: the bit goes
        lstat setgid/f mode -> 0755
        34:34,50 create setgid/g 02755
        lstat setgid/g mode -> 2755
        create f1 04755
        lstat f1 mode -> 4755
        34:34 create f2 06711
        lstat f2 mode,uid -> 6711,34
        34:34 create f3 0000
        lstat f3 mode -> 0000
        34:34 open f4 CREAT|RDWR 0000
        34:34 open f4 RDONLY -> EACCES
        mkdir d1 01777
        lstat d1 mode -> 1755
        umask 077
        34:34 create u1 0666
        lstat u1 mode -> 0600
        mkdir u2 0777
        lstat u2 mode -> 0700
        mkfifo u3 0666
        lstat u3 mode -> 0600
        umask 027
        mknod u4 f 0666
        lstat u4 mode -> 0640
        umask 022
    """)


def test_special_files(area: Path) -> None:
    check("""
        34:34 mknod c c 0644 1 3 -> EPERM
        34:34 mknod b b 0644 7 0 -> EPERM
        34:34 mknod p p 0600
        34:34 mknod s s 0600
        mknod c c 0640 1 3
        lstat c kind,device,mode -> c,1:3,0640
        mknod b b 0640 7 1
        lstat b kind,device -> b,7:1
        lstat p kind,uid -> p,34
        lstat s kind,uid -> s,34
        mknod z c 0644 259 65536
        lstat z device -> 259:65536
        open p WRONLY|NONBLOCK -> ENXIO
        open s RDONLY -> ENXIO
        open c RDWR
        write c abc
        truncate p 0 -> EINVAL
        chmod p 0444
        lstat p mode -> 0444
        lchown c 3 4
        lstat c uid,gid -> 3,4
        link p q
        lstat p nlink -> 2
        unlink p
        lstat q nlink,kind -> 1,p
    """)


def test_chmod(area: Path) -> None:
    check("""
        create f
        chown f 34 34
        34:34 chmod f 0111
        lstat f mode -> 0111
        33:33 chmod f 0777 -> EPERM
        34:34 chmod f 06777
        lstat f mode -> 6777
        chown f 34 50
        34:34 chmod f 02775     # not his group
        lstat f mode -> 0775
        34:34,50 chmod f 02775
        lstat f mode -> 2775
        34:34 chmod f 01644
        lstat f mode -> 1644
        symlink f s
        chmod s 0600
        lstat f mode -> 0600
        lstat s mode -> 0777
        mkdir d
        chown d 34 34
        34:34 chmod d 01777
        lstat d mode -> 1777
        34:34 chmod d 0000
        34:34 list d -> EACCES
        34:34 create d/x -> EACCES
        symlink loop loop
        chmod loop 0644 -> ELOOP
    """)


def test_chown(area: Path) -> None:
    check("""
        create f 0644
        34:34 chown f 34 34 -> EPERM
        chown f 34 34
        34:34 chown f 33 -1 -> EPERM
        34:34 chown f -1 50 -> EPERM
        34:34,50 chown f -1 50
        lstat f uid,gid -> 34,50
        34:34,50 chown f 34 34
        33:33 chown f -1 -1
        chmod f 06755
        34:34 chown f -1 34
        lstat f mode -> 0755
        chmod f 06755
        chown f 5 6
        lstat f uid,gid,mode -> 5,6,0755
        chmod f 06755
        chown f -1 -1
        lstat f mode -> 0755
        mkdir d
        chmod d 06755
        chown d 34 34
        lstat d mode,uid -> 6755,34
        symlink f s
        lchown s 7 8
        lstat s uid,gid -> 7,8
        lstat f uid,gid -> 5,6
        chown s 9 10
        lstat f uid,gid -> 9,10
        symlink none broken
        chown broken 1 1 -> ENOENT
        lchown broken 1 1
        lstat broken uid -> 1
        chown f 4294967294 4294967294
        lstat f uid,gid -> 4294967294,4294967294
    """)


def test_link(area: Path) -> None:
    check("""
        create f
        link f g
        lstat f nlink -> 2
        lstat g nlink -> 2
        chmod g 0600
        lstat f mode -> 0600
        chown f 34 35
        lstat g uid,gid -> 34,35
        write g text
        lstat f size -> 4
        truncate f 2
        read g -> b'te'
        unlink f
        lstat g nlink -> 1
        mkdir d
        link d e -> EPERM
        symlink none s
        link s t
        lstat t kind,nlink -> l,2
        lstat s nlink -> 2
        readlink t -> none
        link none x -> ENOENT
        link g g -> EEXIST
        rename g d/g
        link d/g h
        lstat d/g nlink -> 2
        rename h d/g          # two names of one file: nothing happens
        lstat h nlink -> 2
        lstat d/g nlink -> 2
        34:34 link h i
        33:33 link h j -> EPERM
        mkdir setgid
        chmod setgid 0755
        34:34 link h setgid/h -> EACCES
    """)


def test_symlink(area: Path) -> None:
    check("""
        symlink {l4095} long
        lstat long size -> 4095
        symlink {l4095}x longer -> ENAMETOOLONG
        symlink none s
        stat s mode -> ENOENT
        readlink s -> none
        mkdir d
        create d/f
        symlink d sd
        lstat sd/f kind -> -
        unlink sd
        lstat d/f kind -> -
        symlink d sd
        rmdir sd -> ENOTDIR
        readlink d -> EINVAL
        readlink d/f -> EINVAL
        open s RDONLY -> ENOENT
        open s RDONLY|NOFOLLOW -> ELOOP
        open s CREAT|EXCL|RDWR -> EEXIST
        open s CREAT|RDWR
        lstat none kind -> -
        open sd RDONLY|DIRECTORY|NOFOLLOW -> ENOTDIR
        list sd -> f
        open s RDONLY|DIRECTORY -> ENOTDIR
        rename s d/s
        readlink d/s -> none
        stat d/s mode -> ENOENT
        symlink b a
        symlink a b
        stat a mode -> ELOOP
        stat a/x mode -> ELOOP
    """)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_rename_over(area: Path, kind: str, target: str) -> None:
    if kind == "d" and target != "d":
        expected = "ENOTDIR"
    elif kind != "d" and target == "d":
        expected = "EISDIR"
    else:
        expected = "ok"
    shown = SHOWN.get(kind, kind)
    shown_target = SHOWN.get(target, target)
    check(f"make {kind} x\nmake {target} y\nrename x y -> {expected}")
    if expected == "ok":
        check(f"lstat x kind -> ENOENT\nlstat y kind -> {shown}\nlist . -> y")
    else:
        check(f"lstat x kind -> {shown}\nlstat y kind -> {shown_target}")
        check(f"renameat2 x y EXCHANGE\nlstat x kind -> {shown_target}\nlstat y kind -> {shown}")


def test_rename(area: Path) -> None:
    check("""
        mkdir d
        mkdir d/e
        create d/e/f
        rename d d/e/x -> EINVAL
        rename d d/e -> EINVAL
        rename d/e d -> ENOTEMPTY
        rename d d
        rename d/. x -> EBUSY
        rename d/.. x -> EBUSY
        mkdir full
        create full/f
        rename d full -> ENOTEMPTY
        renameat2 d full NOREPLACE -> EEXIST
        renameat2 d full EXCHANGE
        list d -> f
        list full -> e
        lstat full/e/f kind -> -
        rename full/e e
        list e -> f
        lstat full nlink -> 2
        rename e full/e
        lstat full nlink -> 3
        renameat2 full none EXCHANGE -> ENOENT
        renameat2 full full/e EXCHANGE -> EINVAL
        renameat2 full/e full EXCHANGE -> EINVAL
        renameat2 full x BOTH -> EINVAL
        renameat2 full x BAD -> EINVAL
        renameat2 full new NOREPLACE
        list new/e -> f
        renameat2 d/f new/e EXCHANGE
        lstat new/e kind -> -
        list d/f -> f
        lstat d nlink -> 3
        lstat new nlink -> 2
        create a
        create b
        write a text
        rename a b
        read b -> b'text'
        lstat a kind -> ENOENT
        mkdir empty
        rename d empty
        list empty/f -> f
        rename b/x c -> ENOTDIR
        rename empty b -> ENOTDIR
        rename b empty -> EISDIR
    """)


def test_rename_needs_permission(area: Path) -> None:
    check("""
        mkdir readonly 0755
        create readonly/f 0666
        mkdir open 0777
        chmod open 0777
        create open/f 0666
        34:34 rename readonly/f open/x -> EACCES
        34:34 rename open/f readonly/x -> EACCES
        34:34 rename open/f open/y
        mkdir d 0755
        chown d 34 34
        34:34 mkdir d/mine 0755
        mkdir d/foreign 0755
        34:34 rename d/mine open/mine
        34:34 rename d/foreign d/other           # same parent: ".." stays
        34:34 rename d/other open/foreign -> EACCES   # ".." of what he may not write
        34:34 renameat2 d/other open/mine EXCHANGE -> EACCES
    """)


STICKY = [
    # directory's owner, file's owner, caller, may he remove or rename it
    (34, 34, 34, True),
    (34, 33, 34, True),
    (33, 34, 34, True),
    (33, 33, 34, False),
    (0, 0, 34, False),
    (33, 0, 34, False),
    (33, 33, 0, True),
]


@pytest.mark.parametrize(("directory", "owner", "caller", "allowed"), STICKY)
@pytest.mark.parametrize("kind", KINDS)
def test_sticky_directories(area: Path, kind: str, directory: int, owner: int, caller: int, allowed: bool) -> None:
    result = "ok" if allowed else "EPERM"
    # Moving a directory changes its "..", for which he must be allowed to write it.
    foreign_directory = kind == "d" and owner != caller != 0
    moved = "EACCES" if allowed and foreign_directory else result
    check(f"""
        mkdir s
        chown s {directory} {directory}
        chmod s 01777
        mkdir free
        chmod free 0777
        make {kind} s/x
        lchown s/x {owner} {owner}
        make {kind} s/y
        lchown s/y {owner} {owner}
        make {kind} free/x
        lchown free/x {caller} {caller}
        make {kind} free/z
        lchown free/z {caller} {caller}
        {caller}:{caller} rename free/x s/y -> {result}
        {caller}:{caller} rename s/x free/y -> {moved}
    """)
    if os.path.lexists("s/x"):
        check(f"{caller}:{caller} remove s/x -> {result}")


def test_rmdir(area: Path) -> None:
    check("""
        mkdir d
        create d/f
        rmdir d -> ENOTEMPTY
        rmdir d/f -> ENOTDIR
        rmdir d/. -> EINVAL
        rmdir d/.. -> ENOTEMPTY
        unlink d -> EISDIR
        unlink d/f
        rmdir d
        rmdir d -> ENOENT
        mkdir d
        chmod d 0755
        mkdir d/e
        34:34 rmdir d/e -> EACCES
        34:34 unlink d/x -> ENOENT
        create d/f
        34:34 unlink d/f -> EACCES
        lstat d nlink -> 3
        rmdir d/e
        lstat d nlink -> 2
    """)


def test_inside_a_removed_directory(area: Path) -> None:
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    check("""
        create f -> ENOENT
        mkdir e -> ENOENT
        symlink a b -> ENOENT
        open f RDONLY -> ENOENT
        lstat . nlink,kind -> 0,d
        chmod . 0700
        chown . 3 4
        lstat . mode,uid,gid -> 0700,3,4
    """)
    assert os.listdir(".") == []
    os.chdir(area)


def test_open(area: Path) -> None:
    check("""
        mkdir d
        open d RDONLY
        open d RDONLY|DIRECTORY
        open d WRONLY -> EISDIR
        open d RDWR -> EISDIR
        open d RDONLY|TRUNC -> EISDIR
        open d RDONLY|CREAT -> EISDIR
        open d/ RDONLY|CREAT -> EISDIR
        open x/ RDWR|CREAT -> EISDIR
        open x RDONLY -> ENOENT
        create f 0644
        open f RDONLY|DIRECTORY -> ENOTDIR
        open f/ RDONLY -> ENOTDIR
        open f RDWR|CREAT|EXCL -> EEXIST
        34:34 open f RDONLY
        34:34 open f WRONLY -> EACCES
        34:34 open f RDWR -> EACCES
        34:34 open f RDONLY|TRUNC -> EACCES
        34:34 open f RDWR|CREAT -> EACCES
        chmod f 0602
        34:34 open f RDONLY -> EACCES
        34:34 open f WRONLY
        34:34 open f WRONLY|NOATIME -> EPERM
        write f text
        open f WRONLY|TRUNC
        lstat f size -> 0
        write f text
        open f RDONLY|TRUNC
        lstat f size -> 0
        open new RDONLY|CREAT 0600
        lstat new size,mode -> 0,0600
        chown f 34 50
        chmod f 0460
        34:34 open f WRONLY -> EACCES
        34:34,50 open f WRONLY -> EACCES
        35:35,50 open f WRONLY
        35:35,50 open f RDWR
    """)


def test_truncate(area: Path) -> None:
    check("""
        create f
        write f 0123456789
        truncate f 4
        read f -> b'0123'
        truncate f 8
        read f -> b'0123\\x00\\x00\\x00\\x00'
        truncate f 0
        lstat f size -> 0
        truncate f -1 -> EINVAL
        truncate f 17592186044416 -> EFBIG
        truncate f 4294967296
        lstat f size -> 4294967296
        mkdir d
        truncate d 0 -> EISDIR
        34:34 truncate f 0 -> EACCES
        chmod f 0666
        34:34 truncate f 1
        lstat f size -> 1
        utimes f 5 5
        truncate f 1
        lstat f atime -> 5
    """)


def test_set_user_id_falls(area: Path) -> None:
    for spoil in ("write f text", "truncate f 1", "open f WRONLY|TRUNC", "truncate f 4"):
        check(f"""
            create f
            write f abcd
            chown f 1 1
            chmod f 06777
            {spoil}
            lstat f mode -> 6777     # root may
            chmod f 06777
            34:34 {spoil}
            lstat f mode -> 0777
            chmod f 02767            # group bit without group execute, and not his group
            34:34 {spoil}
            unlink f
        """)


def test_set_times(area: Path) -> None:
    check("""
        create f 0644
        utimes f 1000 2000
        lstat f atime,mtime -> 1000,2000
        34:34 utimes f 1 1 -> EPERM
        34:34 utimes f now now -> EACCES
        chmod f 0666
        34:34 utimes f 1 1 -> EPERM
        34:34 utimes f now now
        chown f 34 34
        chmod f 0444
        34:34 utimes f 3 4
        lstat f atime,mtime -> 3,4
        34:34 utimes f now now
        mkdir d
        utimes d 5 6
        lstat d atime,mtime -> 5,6
        utimes f -5 4294967300
        lstat f atime,mtime -> -5,4294967300
        symlink f s
        utimes s 7 8
        lstat f mtime -> 8
    """)


def test_xattrs(area: Path) -> None:
    check("""
        create f
        getxattr f user.a -> ENODATA
        setxattr f user.a value
        getxattr f user.a -> value
        setxattr f user.a other
        getxattr f user.a -> other
        removexattr f user.a
        removexattr f user.a -> ENODATA
        setxattr f unknown.a value -> ENOTSUP
        setxattr f trusted.a value
        34:34 getxattr f trusted.a -> ENODATA
        34:34 setxattr f user.b value -> EACCES
        listxattr f -> trusted.a
        34:34 listxattr f -> none
        chmod f 0666
        34:34 setxattr f user.b value
        34:34 listxattr f -> user.b
        listxattr f -> trusted.a,user.b
        mkdir d
        setxattr d user.a value
        getxattr d user.a -> value
        mkfifo p
        setxattr p user.a value -> EPERM
    """)


@pytest.mark.parametrize("kind", ["create", "mkdir"])
@pytest.mark.parametrize(
    ("caller", "mode"),
    [
        ("", "2751"),  # root
        ("34:34", "0751"),  # the owner, of another group
        ("34:70", "2751"),
        ("34:34,70", "2751"),
        ("34:34,71,72", "0751"),
    ],
)
def test_an_access_control_list_takes_set_group_id_away(area: Path, kind: str, caller: str, mode: str) -> None:
    if not _has_access_control_lists(area):
        pytest.skip("the file system has none")
    check(f"""
        {kind} f
        chown f 34 70
        chmod f 02700
        {caller} setacl f u::rwx,g::r-x,o::--x
        lstat f mode -> {mode}
        chmod f 02700
        {caller} setacl f u::rwx,u:12:rwx,g::---,m::r-x,o::--x
        lstat f mode -> {mode}
        getacl f -> u::rwx,u:12:rwx,g::---,m::r-x,o::--x
        {caller} setxattr f user.a b
        lstat f mode -> {mode}
    """)


def _has_access_control_lists(area: Path) -> bool:
    try:
        os.getxattr(area, ACCESS_CONTROL_LIST)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True
