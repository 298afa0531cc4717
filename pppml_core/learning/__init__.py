"""The torch side: training, gradient rules, data, evaluation, prediction. Everything here may import torch; nothing below does."""
