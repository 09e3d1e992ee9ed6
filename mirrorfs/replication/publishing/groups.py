"""Owner and notes of groups, and the markers of namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.group_files import check_notes, check_owner
from mirrorfs.datastore.names import GROUP_FILE_NAMES, MANIFEST_NAME, NAMESPACE_MARKER_NAME, GroupId, NamespaceId
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.replication.publishing.outlook import Forecast, Outlook
from mirrorfs.replication.publishing.replica import Replica
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.exclusion import Exclusion
from mirrorfs.replication.work.problems import CannotMirror
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

_OWNER = "owner"
_CHECKS = {_OWNER: check_owner, "notes": check_notes}


class GroupMirror:
    """A group's owner and notes stand in the bucket as long as a snapshot of the group does.

    A group that has no owner any more, or none of the snapshots that the bucket has of it, is about to go as a whole:
    PBS takes its snapshots first and these two after them, one by one. Then both stay until the last of its snapshots
    has left the bucket, so that a deleted snapshot is kept with the notes of its group.
    """

    def __init__(self, tree: Tree, replica: Replica, state: CommittedState) -> None:
        self._tree = tree
        self._replica = replica
        self._state = state
        self._exclusion = Exclusion[GroupId]()

    async def settle(self, group: GroupId) -> None:
        """Have owner and notes in the bucket equal those in the datastore.

        Raises:
            CannotMirror: one of them is no file, not what PBS can read, too large, unreadable or refused by the
                store; what the bucket has of it stays.
        """
        reasons: list[str] = []
        async with self._exclusion.hold(group):
            for name in GROUP_FILE_NAMES:
                try:
                    await self._settle_file(group, f"{group.path}/{name}")
                except CannotMirror as failure:
                    reasons.append(failure.reason)
                except (StoreRejected, ConfirmationFailed) as error:
                    reasons.append(str(error))
        if reasons:
            raise CannotMirror(group.path, "; ".join(reasons))

    async def _settle_file(self, group: GroupId, path: str) -> None:
        data, may_go = await trio.to_thread.run_sync(self._wanted, group, path)
        if data is not None:
            await self._replica.put(path, data)
            reach("group.file-put")
        elif may_go:
            await self._replica.delete([path])
            reach("group.file-deleted")

    def _wanted(self, group: GroupId, path: str) -> tuple[bytes | None, bool]:
        """Return what the object of a file is to be, None for nothing, and whether one that is there may go then."""
        if not self._state.view(lambda transaction: has_snapshots(transaction, group)):
            return None, True
        data = self._read(group, path)
        return data, data is None and not self._is_about_to_go(group)

    def _is_about_to_go(self, group: GroupId) -> bool:
        if not self._tree.exists(f"{group.path}/{_OWNER}"):
            return True
        snapshots = self._state.view(lambda transaction: list(_mirrored(transaction, group)))
        return not any(self._tree.exists(f"{path}/{MANIFEST_NAME}") for path in snapshots)

    def outlook(self, group: GroupId) -> dict[str, Forecast]:
        """Tell what `settle` would do about owner and notes, by their paths; nothing for what is as it should be.

        Blocks for the disk.
        """
        found: dict[str, Forecast] = {}
        for path in (f"{group.path}/{name}" for name in GROUP_FILE_NAMES):
            try:
                data, may_go = self._wanted(group, path)
            except CannotMirror as failure:
                found[path] = Forecast(Outlook.FAIL, failure.reason)
            except OSError as error:
                found[path] = Forecast(Outlook.FAIL, f"it cannot be read: {error.strerror}")
            else:
                forecast = self._replica.outlook(path, data) if data is not None or may_go else None
                if forecast is not None:
                    found[path] = forecast
        return found

    def _read(self, group: GroupId, path: str) -> bytes | None:
        try:
            data = self._tree.read(path)
        except FileNotFoundError:
            return None
        except (DatastoreError, OSError) as error:
            raise CannotMirror(group.path, f"{path} cannot be used: {error}") from error
        try:
            _CHECKS[path.rpartition("/")[2]](data)
        except DatastoreError as error:
            raise CannotMirror(
                group.path, f"{path} {error}; what the bucket has of it stays. Set it anew in PBS"
            ) from error
        return data


class NamespaceMirror:
    """A namespace has a marker object, so that an empty one is not lost."""

    def __init__(self, tree: Tree, replica: Replica, state: CommittedState) -> None:
        self._tree = tree
        self._replica = replica
        self._state = state
        self._exclusion = Exclusion[NamespaceId]()

    async def settle(self, namespace: NamespaceId) -> None:
        """Have the marker there exactly if the namespace's directory is, or a snapshot in it is still in the bucket.

        Raises:
            CannotMirror: something else than a directory stands there; what the bucket has of the namespace stays.
        """
        if namespace.parent is None:
            return
        async with self._exclusion.hold(namespace):
            await trio.to_thread.run_sync(self._refuse_what_is_no_directory, namespace)
            marker = _marker_path(namespace)
            if await trio.to_thread.run_sync(self._is_wanted, namespace):
                await self._replica.put(marker, b"")
                reach("namespace.marker-put")
            else:
                await self._replica.delete([marker])
                reach("namespace.marker-deleted")

    def outlook(self, namespace: NamespaceId) -> Forecast | None:
        """Tell what `settle` would do about the marker; None if nothing. Blocks for the disk."""
        if namespace.parent is None:
            return None
        try:
            self._refuse_what_is_no_directory(namespace)
            data = b"" if self._is_wanted(namespace) else None
        except CannotMirror as failure:
            return Forecast(Outlook.FAIL, failure.reason)
        except OSError as error:
            return Forecast(Outlook.FAIL, f"it cannot be read: {error.strerror}")
        return self._replica.outlook(_marker_path(namespace), data)

    def _refuse_what_is_no_directory(self, namespace: NamespaceId) -> None:
        if self._tree.is_taken(namespace.path) and not self._tree.is_directory(namespace.path):
            raise CannotMirror(
                namespace.path,
                "it is no directory, so it is no namespace; what the bucket has of it stays until it is one again, "
                "or gone",
            )

    def _is_wanted(self, namespace: NamespaceId) -> bool:
        return self._tree.exists(namespace.path) or self._state.view(
            lambda transaction: has_snapshots(transaction, namespace)
        )

    async def settle_with_parents(self, namespace: NamespaceId) -> None:
        """Settle a namespace and all that it lies in, outermost first."""
        if namespace.parent is not None:
            await self.settle_with_parents(namespace.parent)
            await self.settle(namespace)


def _marker_path(namespace: NamespaceId) -> str:
    return f"{namespace.path}/{NAMESPACE_MARKER_NAME}"


def has_snapshots(transaction: StateTransaction, within: GroupId | NamespaceId) -> bool:
    """Tell whether a published snapshot, or one that is about to be, stands in a group or namespace."""
    return any(True for _ in _mirrored(transaction, within))


def _mirrored(transaction: StateTransaction, within: GroupId | NamespaceId) -> Iterator[str]:
    return (path for path, known in transaction.snapshots.below(within.path) if known.phase.counts_references)
