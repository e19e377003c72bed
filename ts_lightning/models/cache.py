"""The cache of keys and values that decoding fills. Legend: B rows, N heads, S positions, D size of a head."""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 64  # positions by which a full layer of the cache grows


class GrowingLayer(DynamicLayer):
    """Keys and values with room behind them: a decoding step writes its own and does not copy those that are there.

    `keys` and `values` [B, N, S, D] are the filled part of larger tensors.
    """

    places_T: Tensor | None = None  # where states are written, in tensors of a fixed size

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.stores = [states.new_empty(*states.shape[:2], 0, states.shape[3]) for states in (key_states, value_states)]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new states behind the others; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.places_T is not None:
            for store, states in zip(self.stores, (key_states, value_states), strict=True):
                store.index_copy_(2, self.places_T, states)
            return self.stores[0], self.stores[1]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for i, states in enumerate((key_states, value_states)):
            if end > self.stores[i].shape[2]:
                room = states.new_empty(*states.shape[:2], end + ROOM - start, states.shape[3])
                self.stores[i] = torch.cat([self.stores[i][:, :, :start], room], 2)
            self.stores[i][:, :, start:end] = states
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values

    def write_at(self, places_T: Tensor, size: int) -> None:
        """From now on, write states at places that are read on the device, in tensors of `size` positions.

        `update` then returns all of them: what is behind the filled part has to be masked, and is zeros, as a number
        it must be. `show` says how much is filled.
        """
        end = self.get_seq_length()
        for i, store in enumerate(self.stores):
            room = store.new_zeros(*store.shape[:2], size - end, store.shape[3])
            self.stores[i] = torch.cat([store[:, :, :end], room], 2)
        self.places_T = places_T
        self.show(end)

    def show(self, end: int) -> None:
        """Let `keys` and `values` be the first positions."""
        self.keys, self.values = (store[:, :, :end] for store in self.stores)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep some rows, in this order."""
        if self.is_initialized:
            end = self.get_seq_length()
            self.stores = [store.index_select(0, beam_idx) for store in self.stores]
            self.keys, self.values = (store[:, :, :end] for store in self.stores)

    def lay_out(self, rows_Q: Tensor, columns_QS: Tensor) -> None:
        """Make Q rows of the own ones: position s of row q is the one at (rows_Q[q], columns_QS[q, s])."""
        self.stores = [store[rows_Q[:, None], :, columns_QS].transpose(1, 2).contiguous() for store in self.stores]
        self.keys, self.values = self.stores

    def put(self, other: "GrowingLayer", rows: Tensor) -> None:
        """Write the rows of `other`, which has no more positions, over own ones, so that both end at the same place."""
        end, length = self.get_seq_length(), other.get_seq_length()
        for store, new in zip(self.stores, other.stores, strict=True):
            store[rows, :, end - length : end] = new[:, :, :length]

    def move(self, rows: Tensor, first: int, other: "GrowingLayer | None" = None) -> None:
        """Keep some rows, from position `first` on, and set those of `other` below them; both end at the same place."""
        stop, length = self.get_seq_length(), 0 if other is None else other.get_seq_length()
        end = max(stop - first, length)
        for i in range(2):
            kept = [self.stores[i][rows, :, first:stop]]
            kept += [] if other is None else [other.stores[i][:, :, :length]]
            store = kept[0].new_zeros(sum(map(len, kept)), kept[0].shape[1], end + ROOM, kept[0].shape[3])
            row = 0
            for part in kept:  # zeros before the shorter: what is masked must be a number all the same
                store[row : row + len(part), :, end - part.shape[2] : end] = part
                row += len(part)
            self.stores[i] = store
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
