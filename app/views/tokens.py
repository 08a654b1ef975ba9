"""Tokens"""
