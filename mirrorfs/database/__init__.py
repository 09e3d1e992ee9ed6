"""LMDB environments, and the state directory of a mirror that they lie in. The only package that imports lmdb.

It promises that an environment grows by itself, that one of a newer format is refused and left as it is, that a
damaged one is told from a disk that is full or cannot be read, and that damage never ends the process that meets it
(another process reads first). What stands in an environment is for journal and state to know.

Read directory (what lies where, and who may use it), then environment, then examination, the process that reads what
may be damaged. data_file reads LMDB's file without LMDB, for whoever only looks and for what is damaged, and look makes
of it what records are read from. errors has what all of them raise, each message a sentence for an administrator.
"""
