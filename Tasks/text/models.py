"""The LSTMs: one label per text, or the next word at every token."""

import torch
from torch import Tensor, nn

from data import PAD, real_tokens


def states_of(lstm: nn.LSTM, inputs: Tensor) -> Tensor:
    """The hidden states (N, T, hidden) after each of the inputs (N, T, embedding).

    In float32 on GPUs: autocast casts cuDNN's recurrent layers to float16, whatever type it is set to.
    """
    with torch.autocast("cuda", enabled=False):
        return lstm(inputs)[0]


class Classifier(nn.Module):
    """The classifier of the selective-classification paper: embeddings, an LSTM, and three linear layers on its last output.

    forward(tokens int (N, T), lengths int (N,)) -> logits (N, K). The last output is that at the last real token. Padding comes
    after it, and an LSTM reads from left to right, so padding cannot change that output and no packing is needed.
    """

    def __init__(self, vocabulary: int, num_classes: int, embedding_size: int = 300, hidden_size: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_size, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size // 2),
            nn.ReLU(),
            nn.Linear(hidden_size // 2, num_classes),
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states = states_of(self.lstm, self.embedding(tokens))  # (N, T, hidden)
        return self.head(states[torch.arange(len(tokens), device=tokens.device), lengths - 1])


class LanguageModel(nn.Module):
    """A word-level language model: embeddings, an LSTM, one linear layer.

    forward(tokens int (N, T), lengths int (N,)) -> logits (M, V) of the next word at each of the M real tokens, row by row.
    Padding never reaches the last layer, so it cannot enter the loss.
    """

    def __init__(self, vocabulary: int, num_classes: int, embedding_size: int = 300, hidden_size: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_size, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states = states_of(self.lstm, self.embedding(tokens))
        return self.head(states[real_tokens(lengths, tokens.shape[1])])


MODELS = {"lstm": Classifier, "lstm-lm": LanguageModel}
