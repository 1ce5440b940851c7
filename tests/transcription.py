"""The equations of the paper in float64, slice by slice, everything stored. Shares no code with
the runtime; slow and obvious on purpose."""

from __future__ import annotations

import numpy as np


def alpha_bar(T=1000):
    product, values = 1.0, []
    for i in range(T):
        beta = 1e-4 + (0.02 - 1e-4) * i / (T - 1)
        product *= 1 - beta
        values.append(product)
    return values  # values[t - 1] belongs to timestep t


def anomaly(x0, first_noise, network, w, timesteps, clip=True, scored=None):
    """Eqs. 4, 6, 7, 10, 12, 14, 16, 18-21 for one slice; x0, first_noise: (C, H, W)."""
    abar = alpha_bar()
    x0 = np.asarray(x0, np.float64)
    channels = range(len(x0)) if scored is None else scored
    bound = (lambda v: np.clip(v, -1, 1)) if clip else (lambda v: v)
    a = abar[timesteps[0] - 1]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * np.asarray(first_noise, np.float64)
    M, MSE_h, MSE_0, S = [], [], [], []
    for i, t in enumerate(timesteps):
        a = abar[t - 1]
        eps_h, eps_0 = network(x[None], np.array([t]))
        eps_h, eps_0 = eps_h[0], eps_0[0]
        eps_w = (1 + w) * eps_h - w * eps_0
        hgp = bound((x - np.sqrt(1 - a) * eps_w) / np.sqrt(a))
        ugp = bound((x - np.sqrt(1 - a) * eps_0) / np.sqrt(a))
        M.append([np.mean((hgp[c] - ugp[c]) ** 2) for c in channels])
        MSE_h.append([np.mean((hgp[c] - x0[c]) ** 2) for c in channels])
        MSE_0.append([np.mean((ugp[c] - x0[c]) ** 2) for c in channels])
        S.append([(hgp[c] - x0[c]) ** 2 for c in channels])
        if i + 1 < len(timesteps):
            b = abar[timesteps[i + 1] - 1]
            x = np.sqrt(b) * ugp + np.sqrt(1 - b) * (x - np.sqrt(a) * ugp) / np.sqrt(1 - a)
    M, S = np.array(M), np.array(S)
    best = M.argmax(axis=0)
    H = np.array([S[: best[c] + 1, c].mean(axis=0) for c in range(len(best))])
    h, zero = np.mean(MSE_h, axis=1), np.mean(MSE_0, axis=1)
    cos = h @ zero / (np.linalg.norm(h) * np.linalg.norm(zero))
    return {
        "M": M,
        "MSE_h": np.array(MSE_h),
        "MSE_0": np.array(MSE_0),
        "t_e": np.array([timesteps[i] for i in best]),
        "H": H,
        "cos": cos,
    }


def quantile_threshold(H, M, M_max, a=0.90, b=0.98):
    """Algorithm 1, and the mean over modalities."""
    Q = []
    for c in range(len(H)):
        share = min(max(M[:, c].max() / M_max[c], 0.0), 1.0)
        index = round(round(share, 2) * 100)
        Q.append(np.quantile(H[c], b + (a - b) * index / 100))
    return float(np.mean(Q))
