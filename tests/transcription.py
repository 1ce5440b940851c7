"""The equations of the paper in float64, slice by slice, everything stored.

Shares no code with the runtime; slow and obvious on purpose.
"""

from fractions import Fraction

import numpy as np


def alpha_bar(T=1000):
    product, values = 1.0, []
    for i in range(T):
        beta = 1e-4 + (0.02 - 1e-4) * i / (T - 1)
        product *= 1 - beta
        values.append(product)
    return values  # values[t - 1] belongs to timestep t


def noised(x0, noise, abar):
    """Eq. 2."""
    return np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise


def clean(x_t, eps, abar):
    """Eqs. 7 and 10, before clipping."""
    return (x_t - np.sqrt(1 - abar) * eps) / np.sqrt(abar)


def guided(eps_healthy, eps_null, w):
    """Eq. 6."""
    return (1 + w) * eps_healthy - w * eps_null


def encoded(x_t, x0, abar, abar_next):
    """Eq. 4."""
    eps = (x_t - np.sqrt(abar) * x0) / np.sqrt(1 - abar)
    return np.sqrt(abar_next) * x0 + np.sqrt(1 - abar_next) * eps


def anomaly(
    x0,
    noise,
    network,
    w,
    timesteps,
    clip=True,
    scored=None,
    encoding="ddim",
    anomaly_map="aggregate",
    sub_map="residual",
    ratio=1.0,
    stop=None,
):
    """Eqs. 2, 4, 6, 7, 10, 12, 14, 16, 18-21 for one slice; x0: (C, H, W), noise: t -> (C, H, W).

    stop: (drop, patience), or None for a process that goes on to the last timestep.
    """
    abar = alpha_bar()
    x0 = np.asarray(x0, np.float64)
    channels = range(len(x0)) if scored is None else scored
    bound = (lambda v: np.clip(v, -1, 1)) if clip else (lambda v: v)

    def fresh(t):
        return noised(x0, np.asarray(noise(t), np.float64), abar[t - 1])

    x = fresh(timesteps[0])
    M, MSE_h, MSE_0, S, R = [], [], [], [], []
    guidance, unguided = [], []
    for i, t in enumerate(timesteps):
        a = abar[t - 1]
        if encoding == "ddpm":
            x = fresh(t)
        eps_h, eps_0 = network(x[None], np.array([t]))
        eps_h, eps_0 = eps_h[0], eps_0[0]
        hgp = bound(clean(x, guided(eps_h, eps_0, w), a))
        ugp = bound(clean(x, eps_0, a))
        M.append([np.mean((hgp[c] - ugp[c]) ** 2) for c in channels])
        MSE_h.append([np.mean((hgp[c] - x0[c]) ** 2) for c in channels])
        MSE_0.append([np.mean((ugp[c] - x0[c]) ** 2) for c in channels])
        guidance.append([hgp[c] - ugp[c] for c in channels])
        unguided.append([ugp[c] - x0[c] for c in channels])
        S.append([(hgp[c] - x0[c]) ** 2 for c in channels])
        B = (1 - a) / np.sqrt(a)
        share = {"residual": 0, "gradient": 1, "gradient-normalised": 1 / (B * (1 + w)) ** 2}
        R.append([(hgp[c] - ugp[c]) ** 2 * share[sub_map] for c in channels])
        if stop and is_over(np.array(M), *stop):
            break
        if i + 1 < len(timesteps):
            x = encoded(x, ugp, a, abar[timesteps[i + 1] - 1])
    M, maps = np.array(M), np.array(S if sub_map == "residual" else R)
    best = M.argmax(axis=0)
    H = []
    for c in range(len(best)):
        limit = Fraction(str(ratio)) * timesteps[best[c]]
        reached = [i for i in range(len(M)) if timesteps[i] <= limit]
        upto = max(reached, default=0)
        H.append(maps[upto, c] if anomaly_map == "last" else maps[: upto + 1, c].mean(axis=0))
    h, zero = np.mean(MSE_h, axis=1), np.mean(MSE_0, axis=1)
    cos = h @ zero / (np.linalg.norm(h) * np.linalg.norm(zero))
    b, a = np.array(guidance).ravel(), np.array(unguided).ravel()
    return {
        "alignment": a @ b / (np.linalg.norm(a) * np.linalg.norm(b)),
        "M": M,
        "MSE_h": np.array(MSE_h),
        "MSE_0": np.array(MSE_0),
        "t_e": np.array([timesteps[i] for i in best]),
        "H": np.array(H),
        "cos": cos,
    }


def is_over(M, drop, patience):
    """Whether the last ``patience`` rows of M lie below drop times the maximum before them."""
    if len(M) <= patience:
        return False
    for i in range(len(M) - patience, len(M)):
        for c in range(M.shape[1]):
            if M[i, c] >= drop * M[: i + 1, c].max():
                return False
    return True


def quantile_threshold(H, M, M_max, a=0.90, b=0.98):
    """Algorithm 1, and the mean over modalities."""
    Q = []
    for c in range(len(H)):
        share = min(max(M[:, c].max() / M_max[c], 0.0), 1.0)
        index = round(round(share, 2) * 100)
        Q.append(np.quantile(H[c], b + (a - b) * index / 100))
    return float(np.mean(Q))


def mask(H, Q, smallest):
    """5x5 median with mirrored borders, H >= Q, and no component of at most ``smallest`` pixels."""
    padded = np.pad(H, 2, mode="reflect")
    rows, columns = H.shape
    above = np.zeros(H.shape, bool)
    for i in range(rows):
        for j in range(columns):
            middle = np.median(padded[i : i + 5, j : j + 5])
            above[i, j] = middle >= Q and middle > 0
    kept = np.zeros(H.shape, bool)
    for piece in flood(above, diagonal=True):
        # Filled: everything that does not reach the border through what is not the piece.
        others = flood(np.pad(~piece, 1, constant_values=True), diagonal=False)
        outside = next(other for other in others if other[0, 0])
        if (~outside).sum() > smallest:
            kept |= piece
    return kept


def flood(picture, diagonal):
    """The connected pieces of a picture."""
    left, pieces = picture.copy(), []
    while left.any():
        piece = np.zeros(picture.shape, bool)
        todo = [tuple(np.argwhere(left)[0])]
        while todo:
            i, j = todo.pop()
            inside = 0 <= i < picture.shape[0] and 0 <= j < picture.shape[1]
            if not inside or not left[i, j]:
                continue
            left[i, j], piece[i, j] = False, True
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if diagonal or di == 0 or dj == 0:
                        todo.append((i + di, j + dj))
        pieces.append(piece)
    return pieces
