{{- define "sightline.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sightline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "sightline.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sightline.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sightline.selector" -}}
app.kubernetes.io/name: {{ include "sightline.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sightline.labels" -}}
{{ include "sightline.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Whether there is a key by its hash, which goes into a Secret. */}}
{{- define "sightline.hasHashes" -}}
{{- range .Values.keys }}{{ if .sha256 }}yes{{ end }}{{ end -}}
{{- end -}}

{{- define "sightline.claim" -}}
{{- default (include "sightline.fullname" .) .Values.persistence.existingClaim -}}
{{- end -}}

{{/* What cannot be meant is refused here, not by a pod that does not start. */}}
{{- define "sightline.check" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) (gt (int .Values.worker.replicas) 0) -}}
{{- if and (not .Values.keys) (not .Values.openToAnyone) (not (dig "access" "file" "" .Values.config)) -}}
{{- fail "No key protects the server. Name one in `keys`, by its sha256 (printf %s \"$KEY\" | sha256sum), or say openToAnyone: true." -}}
{{- end -}}
{{- range $name := list "host" "port" "data_dir" "drain_s" "admin" "tls" -}}
{{- if hasKey $.Values.config $name -}}
{{- fail (printf "config.%s is set by the chart: see values.yaml for what decides it." $name) -}}
{{- end -}}
{{- end -}}
{{- if dig "access" "keys" "" .Values.config -}}
{{- fail "Keys stand in `keys`, not in config.access.keys." -}}
{{- end -}}
{{- if and $several .Values.persistence.enabled (not (has "ReadWriteMany" .Values.persistence.accessModes)) -}}
{{- fail "Several pods cannot share a volume that one node mounts. Set persistence.accessModes: [ReadWriteMany], or persistence.enabled: false with config.jobs (Redis) and config.files.url (S3)." -}}
{{- end -}}
{{- if and $several (not .Values.config.jobs) -}}
{{- fail "Several pods need a queue that they share, or a batch is known to one of them only. Set config.jobs: redis://..." -}}
{{- end -}}
{{- end -}}
